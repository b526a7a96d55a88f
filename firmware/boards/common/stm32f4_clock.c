#include "stm32f4_clock.h"

#include "core.h"
#include "wait.h"

enum { HSI_MHZ = 16, HZ_PER_MHZ = 1000000 };

enum { RCC_CR = 0x40023800, RCC_PLLCFGR = 0x40023804, RCC_CFGR = 0x40023808 };
enum { HSE_READY = 1 << 17, PLL_ON = 1 << 24, PLL_READY = 1 << 25 };
enum { PLL_N = 6, PLL_FROM_HSE = 1 << 22, PLL_Q_2 = 2 << 24, PLL_R_2 = 2 << 28 };
enum { SWITCH_PLL = 2, SWITCHED = 3 << 2, SWITCHED_PLL = 2 << 2 };
enum { APB1_QUARTER = 5 << 10, APB2_HALF = 4 << 13 };
enum { APB1_POWER = 1 << 28 };

enum { PWR_CR = 0x40007000, PWR_CSR = 0x40007004 };
enum { SCALE_READY = 1 << 14, OVER_DRIVE = 1 << 16, OVER_DRIVE_SWITCH = 1 << 17 };

enum { FLASH_ACR = 0x40023c00, WAIT_STATES = 15 };

/* The PLL on, at 1 MHz times 2 N / 2; Q and R, which nothing uses, at an allowed value. */
static void start_pll(const struct stm32f4_clock *clock) {
    uint32_t source = 0, mhz = HSI_MHZ;
    REGISTER(RCC_CR) |= clock->hse & ~(uint32_t)STM32F4_CRYSTAL; /* the bypass only while the HSE is off */
    REGISTER(RCC_CR) |= clock->hse;
    if (becomes(RCC_CR, HSE_READY, HSE_READY)) {
        source = PLL_FROM_HSE;
        mhz = clock->hse_mhz;
    }
    REGISTER(RCC_PLLCFGR) = PLL_R_2 | PLL_Q_2 | source | 2 * clock->core_mhz << PLL_N | mhz;
    REGISTER(RCC_CR) |= PLL_ON;
}

/* In the order of RM0390, "Entering Over-drive mode", with the PLL on and no peripheral running. */
static int over_drive(void) {
    REGISTER(PWR_CR) |= OVER_DRIVE;
    if (!becomes(PWR_CSR, OVER_DRIVE, OVER_DRIVE)) return 0;
    REGISTER(PWR_CR) |= OVER_DRIVE_SWITCH;
    return becomes(PWR_CSR, OVER_DRIVE_SWITCH, OVER_DRIVE_SWITCH);
}

/* After reset the core runs from the HSI, and the voltage scale is 1, the one for the highest clocks. */
uint32_t stm32f4_clock_start(const struct stm32f4_clock *clock) {
    REGISTER(STM32F4_APB1_ENABLE) |= APB1_POWER;
    REGISTER(FLASH_ACR) = clock->flash;
    start_pll(clock);
    if (becomes(RCC_CR, PLL_READY, PLL_READY) && becomes(PWR_CSR, SCALE_READY, SCALE_READY) &&
        (!clock->over_drive || over_drive()) && becomes(FLASH_ACR, WAIT_STATES, clock->flash & WAIT_STATES)) {
        REGISTER(RCC_CFGR) = APB1_QUARTER | APB2_HALF;
        REGISTER(RCC_CFGR) = APB1_QUARTER | APB2_HALF | SWITCH_PLL;
        if (becomes(RCC_CFGR, SWITCHED, SWITCHED_PLL)) return clock->core_mhz * HZ_PER_MHZ;
    }
    REGISTER(RCC_CFGR) = 0;
    REGISTER(RCC_CR) &= ~(uint32_t)PLL_ON;
    return HSI_MHZ * HZ_PER_MHZ;
}
