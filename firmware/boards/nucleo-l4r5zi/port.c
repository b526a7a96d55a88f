/*
 * ST NUCLEO-L4R5ZI: 120 MHz from the HSI16, voltage range 1 boost; LPUART1 on PG7 and PG8, the ST-LINK's
 * virtual COM port (UM2179, "LPUART1 communication").
 */
#include "port.h"

#include "core.h"
#include "stm32_gpio.h"
#include "stm32_usart.h"
#include "wait.h"

enum { CORE_HZ = 120000000, MSI_HZ = 4000000 };

enum { RCC_CR = 0x40021000, RCC_CFGR = 0x40021008, RCC_PLLCFGR = 0x4002100c };
enum { RCC_AHB2ENR = 0x4002104c, RCC_APB1ENR1 = 0x40021058, RCC_APB1ENR2 = 0x4002105c };
enum { HSI_ON = 1 << 8, HSI_READY = 1 << 10, PLL_ON = 1 << 24, PLL_READY = 1 << 25 };
enum { PLL_FROM_HSI = 2, PLL_M = 4, PLL_N = 8, PLL_R_ON = 1 << 24 };
enum { SWITCH_PLL = 3, SWITCHED = 3 << 2, SWITCHED_PLL = 3 << 2, AHB_HALF = 8 << 4 };
enum { POWER_ENABLE = 1 << 28, GPIO_G_ENABLE = 1 << 6, LPUART1_ENABLE = 1 << 0 };

enum { PWR_CR2 = 0x40007004, PWR_SR2 = 0x40007014, PWR_CR5 = 0x40007080 };
enum { PORT_G_SUPPLY = 1 << 9, VOLTAGE_CHANGES = 1 << 10, NO_BOOST = 1 << 8 };

/* 5 wait states for 100 to 120 MHz in range 1 boost: RM0432, "Read access latency". */
enum { FLASH_ACR = 0x40022000, WAIT_STATES = 15, WAIT_STATES_5 = 5 };
enum { PREFETCH = 1 << 8, INSTRUCTION_CACHE = 1 << 9, DATA_CACHE = 1 << 10 };

enum { GPIO_G = 0x48001800, LPUART1 = 0x40008000, FUNCTION = 8 };

const char port_name[] = "nucleo-l4r5zi";

static uint32_t core_hz;

/*
 * 16 MHz / 4 * 60 / 2. The HSI16 drifts by 1 % from 0 to 85 °C, the MSI by 3 %: too much for a serial port
 * (DS12023, HSI16 and MSI oscillator characteristics). In the order of RM0432, "Dynamic voltage scaling
 * management": above 80 MHz the AHB runs at half its clock for the first microsecond.
 */
static int start_pll(void) {
    REGISTER(PWR_CR5) &= ~(uint32_t)NO_BOOST;
    REGISTER(FLASH_ACR) = DATA_CACHE | INSTRUCTION_CACHE | PREFETCH | WAIT_STATES_5;
    REGISTER(RCC_CR) |= HSI_ON;
    if (!becomes(RCC_CR, HSI_READY, HSI_READY)) return 0;
    REGISTER(RCC_PLLCFGR) = PLL_R_ON | 60 << PLL_N | (4 - 1) << PLL_M | PLL_FROM_HSI;
    REGISTER(RCC_CR) |= PLL_ON;
    if (!becomes(RCC_CR, PLL_READY, PLL_READY) || !becomes(PWR_SR2, VOLTAGE_CHANGES, 0) ||
        !becomes(FLASH_ACR, WAIT_STATES, WAIT_STATES_5)) {
        return 0;
    }
    REGISTER(RCC_CFGR) = AHB_HALF;
    REGISTER(RCC_CFGR) = AHB_HALF | SWITCH_PLL;
    if (!becomes(RCC_CFGR, SWITCHED, SWITCHED_PLL)) return 0;
    for (int rounds = CORE_HZ / 2 / 1000000; rounds > 0; rounds--) __asm__ volatile("");
    REGISTER(RCC_CFGR) = SWITCH_PLL;
    return 1;
}

/* At reset the core runs from the MSI. */
static void start_clock(void) {
    core_hz = CORE_HZ;
    if (!start_pll()) {
        REGISTER(RCC_CFGR) = 0;
        REGISTER(RCC_CR) &= ~(uint32_t)PLL_ON;
        core_hz = MSI_HZ;
    }
}

void port_start(void) {
    REGISTER(RCC_APB1ENR1) |= POWER_ENABLE;
    start_clock();
    REGISTER(PWR_CR2) |= PORT_G_SUPPLY; /* PG2 to PG15 are of a supply of their own, VDDIO2 */
    REGISTER(RCC_AHB2ENR) |= GPIO_G_ENABLE;
    REGISTER(RCC_APB1ENR2) |= LPUART1_ENABLE;
    stm32_alternate(GPIO_G, 7, FUNCTION);
    stm32_alternate(GPIO_G, 8, FUNCTION);
    usart_start(LPUART1, lpuart_divisor(core_hz));
    cycles_start();
    enable_interrupt(PORT_INTERRUPT);
}

uint32_t port_clock_hz(void) { return core_hz; }
