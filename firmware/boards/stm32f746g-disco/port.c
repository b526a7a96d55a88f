/*
 * ST 32F746GDISCOVERY: 216 MHz from a crystal of 25 MHz, over-drive; USART1 on PA9 and PB7, the ST-LINK's
 * virtual COM port (UM1907, "Clock sources" and "Virtual COM port").
 */
#include "port.h"

#include "core.h"
#include "cortex_m7.h"
#include "stm32_gpio.h"
#include "stm32_usart.h"
#include "stm32f4_clock.h"

enum { GPIO_A = 0x40020000, GPIO_B = 0x40020400, GPIO_A_ENABLE = 1 << 0, GPIO_B_ENABLE = 1 << 1 };
enum { USART1 = 0x40011000, USART1_ENABLE = 1 << 4, FUNCTION = 7 };
enum { PREFETCH = 1 << 8, ACCELERATOR = 1 << 9 };

/*
 * 7 wait states for 210 to 216 MHz: RM0385, "Number of wait states according to CPU clock (HCLK) frequency".
 * The accelerator is in the flash's path by ITCM, at 0x00200000; by AXI, at 0x08000000, the core's own caches
 * do its work.
 */
static const struct stm32f4_clock clock = {.core_mhz = 216,
                                           .hse_mhz = 25,
                                           .hse = STM32F4_CRYSTAL,
                                           .flash = ACCELERATOR | PREFETCH | 7,
                                           .over_drive = 1};

const char port_name[] = "stm32f746g-disco";

static uint32_t core_hz;

void port_start(void) {
    cortex_m7_caches_on();
    core_hz = stm32f4_clock_start(&clock);
    REGISTER(STM32F4_AHB1_ENABLE) |= GPIO_A_ENABLE | GPIO_B_ENABLE;
    REGISTER(STM32F4_APB2_ENABLE) |= USART1_ENABLE;
    stm32_alternate(GPIO_A, 9, FUNCTION);
    stm32_alternate(GPIO_B, 7, FUNCTION);
    usart_start(USART1, usart_divisor(stm32f4_apb2_hz(&clock, core_hz)));
    cycles_start();
    enable_interrupt(PORT_INTERRUPT);
}

uint32_t port_clock_hz(void) { return core_hz; }
