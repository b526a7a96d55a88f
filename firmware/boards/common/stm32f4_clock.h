/*
 * Clock tree of the STM32 F4 and F7: their RCC, PWR and flash interface have the same registers as far as
 * they are used here (RM0090, RM0390, RM0385: RCC, PWR, Flash access control register).
 */
#ifndef MICROSTILL_STM32F4_CLOCK_H
#define MICROSTILL_STM32F4_CLOCK_H

#include <stdint.h>

/* Clock enable registers. */
enum { STM32F4_AHB1_ENABLE = 0x40023830, STM32F4_APB1_ENABLE = 0x40023840, STM32F4_APB2_ENABLE = 0x40023844 };

/* HSE: a crystal, or a clock from elsewhere. */
enum { STM32F4_CRYSTAL = 1 << 16, STM32F4_EXTERNAL_CLOCK = 1 << 16 | 1 << 18 };

struct stm32f4_clock {
    uint32_t core_mhz; /* what the PLL makes, from 1 MHz; its VCO runs at twice that, 100 to 432 MHz */
    uint32_t hse_mhz;
    uint32_t hse;      /* STM32F4_CRYSTAL or STM32F4_EXTERNAL_CLOCK */
    uint32_t flash;    /* FLASH_ACR: wait states that core_mhz asks for at 2.7 to 3.6 V, accelerators */
    int over_drive;    /* whether core_mhz asks for it */
};

/*
 * Clock of the core in Hz, as it is when this returns: core_mhz by the PLL, with APB1 at a quarter and APB2
 * at half of it. The PLL starts from the HSE, or from the HSI (16 MHz, an RC oscillator of 1 % at 25 °C)
 * where the HSE does not start. Where no PLL can be had either, the HSI itself, with both buses at its clock.
 */
uint32_t stm32f4_clock_start(const struct stm32f4_clock *clock);

/* Clocks of the peripherals on APB1 and APB2 at the core clock that stm32f4_clock_start() returned. */
static inline uint32_t stm32f4_apb1_hz(const struct stm32f4_clock *clock, uint32_t core_hz) {
    return core_hz == clock->core_mhz * 1000000 ? core_hz / 4 : core_hz;
}

static inline uint32_t stm32f4_apb2_hz(const struct stm32f4_clock *clock, uint32_t core_hz) {
    return core_hz == clock->core_mhz * 1000000 ? core_hz / 2 : core_hz;
}

#endif
