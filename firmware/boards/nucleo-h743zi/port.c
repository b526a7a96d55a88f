/*
 * ST NUCLEO-H743ZI: 480 MHz from the 8 MHz of the ST-LINK, 400 on silicon before revision V; USART3 on PD8
 * and PD9, the ST-LINK's virtual COM port (UM1974 and UM2407, "OSC clock" and "USART communication").
 */
#include "port.h"

#include "core.h"
#include "cortex_m7.h"
#include "stm32_gpio.h"
#include "stm32_usart.h"
#include "wait.h"

enum { HSI_MHZ = 64, HSE_MHZ = 8, PLL_INPUT_MHZ = 8, HZ_PER_MHZ = 1000000 };

enum { RCC_CR = 0x58024400, RCC_CFGR = 0x58024410, RCC_D1CFGR = 0x58024418, RCC_D2CFGR = 0x5802441c };
enum { RCC_D3CFGR = 0x58024420, RCC_PLLCKSELR = 0x58024428 };
enum { RCC_PLLCFGR = 0x5802442c, RCC_PLL1DIVR = 0x58024430 };
enum { RCC_AHB4ENR = 0x580244e0, RCC_APB1LENR = 0x580244e8, RCC_APB4ENR = 0x580244f4 };
enum { HSE_ON = 1 << 16, HSE_READY = 1 << 17, HSE_BYPASS = 1 << 18, PLL_ON = 1 << 24, PLL_READY = 1 << 25 };
enum { PLL_FROM_HSI = 0, PLL_FROM_HSE = 2, PLL_M = 4, PLL_INPUT_8_16_MHZ = 3 << 2, PLL_P_ON = 1 << 16 };
enum { PLL_P_2 = (2 - 1) << 9, PLL_Q_2 = (2 - 1) << 16, PLL_R_2 = (2 - 1) << 24 };
enum { SWITCH_PLL = 3, SWITCHED = 7 << 3, SWITCHED_PLL = 3 << 3 };
enum { AHB_HALF = 8, APB3_HALF = 4 << 4, APB1_HALF = 4 << 4, APB2_HALF = 4 << 8, APB4_HALF = 4 << 4 };
enum { GPIO_D_ENABLE = 1 << 3, USART3_ENABLE = 1 << 18, SYSTEM_ENABLE = 1 << 1 };

enum { PWR_CSR1 = 0x58024804, PWR_CR3 = 0x5802480c, PWR_D3CR = 0x58024818, SYSCFG_PWRCR = 0x5800042c };
enum { SUPPLY = 7, SUPPLY_LDO = 2, SUPPLY_READY = 1 << 13 };
enum { SCALE_1 = 3 << 14, SCALE_READY = 1 << 13, OVER_DRIVE = 1 << 0 };

/*
 * RM0433, "FLASH recommended number of wait states and programming delay": 4 wait states and delay 2 up to
 * 240 MHz of the AXI bus at scale 0; 2 would do for 200 MHz at scale 1.
 */
enum { FLASH_ACR = 0x52002000, FLASH_TIMING = 0x3f, FLASH_TIMING_240_MHZ = 2 << 4 | 4 };

enum { DBGMCU_IDCODE = 0x5c001000, REVISION = 16, REVISION_V = 0x2003, AXI_TARG7_FN_MOD = 0x51008108 };
enum { GPIO_D = 0x58020c00, USART3 = 0x40004800, FUNCTION = 7 };

const char port_name[] = "nucleo-h743zi";

static uint32_t core_hz;

/*
 * Voltage scale 1, and 0 on top of it for `core_mhz` beyond 400 (RM0433, "Voltage scaling"). No scale is set
 * before the supply has been told.
 */
static int raise_voltage(uint32_t core_mhz) {
    REGISTER(PWR_CR3) = (REGISTER(PWR_CR3) & ~(uint32_t)SUPPLY) | SUPPLY_LDO;
    if (!becomes(PWR_CSR1, SUPPLY_READY, SUPPLY_READY)) return 0;
    REGISTER(PWR_D3CR) |= SCALE_1;
    if (!becomes(PWR_D3CR, SCALE_READY, SCALE_READY)) return 0;
    if (core_mhz <= 400) return 1;
    REGISTER(RCC_APB4ENR) |= SYSTEM_ENABLE;
    (void)REGISTER(RCC_APB4ENR);
    REGISTER(SYSCFG_PWRCR) |= OVER_DRIVE;
    return becomes(SYSCFG_PWRCR, OVER_DRIVE, OVER_DRIVE) && becomes(PWR_D3CR, SCALE_READY, SCALE_READY);
}

/* 8 MHz times `core_mhz` / 4 is the VCO's clock, 800 or 960 MHz; half of it the core's. */
static int start_pll(uint32_t core_mhz) {
    uint32_t source = PLL_FROM_HSI | HSI_MHZ / PLL_INPUT_MHZ << PLL_M;
    REGISTER(RCC_CR) |= HSE_BYPASS; /* only while the HSE is off */
    REGISTER(RCC_CR) |= HSE_ON;
    if (becomes(RCC_CR, HSE_READY, HSE_READY)) source = PLL_FROM_HSE | HSE_MHZ / PLL_INPUT_MHZ << PLL_M;
    REGISTER(RCC_PLLCKSELR) = source;
    REGISTER(RCC_PLLCFGR) = PLL_P_ON | PLL_INPUT_8_16_MHZ;
    REGISTER(RCC_PLL1DIVR) = PLL_R_2 | PLL_Q_2 | PLL_P_2 | (core_mhz * 2 / PLL_INPUT_MHZ - 1);
    REGISTER(RCC_CR) |= PLL_ON;
    return becomes(RCC_CR, PLL_READY, PLL_READY);
}

static void set_buses(uint32_t d1, uint32_t d2, uint32_t d3) {
    REGISTER(RCC_D1CFGR) = d1;
    REGISTER(RCC_D2CFGR) = d2;
    REGISTER(RCC_D3CFGR) = d3;
}

/* AXI and AHB at half the core's clock, the APBs at a quarter. */
static int switch_to_pll(void) {
    set_buses(AHB_HALF | APB3_HALF, APB1_HALF | APB2_HALF, APB4_HALF);
    REGISTER(RCC_CFGR) = SWITCH_PLL;
    return becomes(RCC_CFGR, SWITCHED, SWITCHED_PLL);
}

/* Returns the clock of APB1. At reset the core runs from the HSI, and all buses with it. */
static uint32_t start_clock(uint32_t core_mhz) {
    REGISTER(FLASH_ACR) = FLASH_TIMING_240_MHZ;
    if (raise_voltage(core_mhz) && start_pll(core_mhz) &&
        becomes(FLASH_ACR, FLASH_TIMING, FLASH_TIMING_240_MHZ) && switch_to_pll()) {
        core_hz = core_mhz * HZ_PER_MHZ;
        return core_hz / 4;
    }
    REGISTER(RCC_CFGR) = 0;
    set_buses(0, 0, 0);
    REGISTER(RCC_CR) &= ~(uint32_t)PLL_ON;
    core_hz = HSI_MHZ * HZ_PER_MHZ;
    return core_hz;
}

void port_start(void) {
    const int is_old = REGISTER(DBGMCU_IDCODE) >> REVISION < REVISION_V;
    if (is_old) REGISTER(AXI_TARG7_FN_MOD) = 1; /* else reads of AXI SRAM may be wrong: ES0392, section 2.2 */
    cortex_m7_caches_on();
    const uint32_t bus_hz = start_clock(is_old ? 400 : 480);
    REGISTER(RCC_AHB4ENR) |= GPIO_D_ENABLE;
    REGISTER(RCC_APB1LENR) |= USART3_ENABLE;
    stm32_alternate(GPIO_D, 8, FUNCTION);
    stm32_alternate(GPIO_D, 9, FUNCTION);
    usart_start(USART3, usart_divisor(bus_hz));
    cycles_start();
    enable_interrupt(PORT_INTERRUPT);
}

uint32_t port_clock_hz(void) { return core_hz; }
