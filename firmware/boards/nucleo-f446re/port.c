/*
 * ST NUCLEO-F446RE: 180 MHz from the 8 MHz of the ST-LINK, over-drive; USART2 on PA2 and PA3, the ST-LINK's
 * virtual COM port (UM1724, "OSC clock supply" and "USART communication").
 */
#include "port.h"

#include "core.h"
#include "stm32_gpio.h"
#include "stm32_usart.h"
#include "stm32f4_clock.h"

enum { GPIO_A = 0x40020000, GPIO_A_ENABLE = 1 << 0 };
enum { USART2 = 0x40004400, USART2_ENABLE = 1 << 17, FUNCTION = 7 };
enum { PREFETCH = 1 << 8, INSTRUCTION_CACHE = 1 << 9, DATA_CACHE = 1 << 10 };

/* 5 wait states for 150 to 180 MHz: RM0390, "Relation between CPU clock frequency and Flash read time" */
static const struct stm32f4_clock clock = {.core_mhz = 180,
                                           .hse_mhz = 8,
                                           .hse = STM32F4_EXTERNAL_CLOCK,
                                           .flash = DATA_CACHE | INSTRUCTION_CACHE | PREFETCH | 5,
                                           .over_drive = 1};

const char port_name[] = "nucleo-f446re";

static uint32_t core_hz;

void port_start(void) {
    core_hz = stm32f4_clock_start(&clock);
    REGISTER(STM32F4_AHB1_ENABLE) |= GPIO_A_ENABLE;
    REGISTER(STM32F4_APB1_ENABLE) |= USART2_ENABLE;
    stm32_alternate(GPIO_A, 2, FUNCTION);
    stm32_alternate(GPIO_A, 3, FUNCTION);
    usart_start(USART2, usart_divisor(stm32f4_apb1_hz(&clock, core_hz)));
    cycles_start();
    enable_interrupt(PORT_INTERRUPT);
}

uint32_t port_clock_hz(void) { return core_hz; }
