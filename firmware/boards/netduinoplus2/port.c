/*
 * Netduino Plus 2: STM32F405, 168 MHz from a crystal of 25 MHz; USART1 on PA9 and PA10. In QEMU, whose
 * machine has no RCC, the core runs at 168 MHz from the start.
 */
#include "port.h"

#include "core.h"
#include "stm32_gpio.h"
#include "stm32_usart.h"
#include "stm32f4_clock.h"

enum { CORE_MHZ = 168, RCC_CR = 0x40023800 };
enum { GPIO_A = 0x40020000, GPIO_A_ENABLE = 1 << 0 };
enum { USART1 = 0x40011000, USART1_ENABLE = 1 << 4, FUNCTION = 7 };
enum { PREFETCH = 1 << 8, INSTRUCTION_CACHE = 1 << 9, DATA_CACHE = 1 << 10 };

/* 5 wait states for 150 to 168 MHz: RM0090, "Relation between CPU clock frequency and Flash read time" */
static const struct stm32f4_clock clock = {.core_mhz = CORE_MHZ,
                                           .hse_mhz = 25,
                                           .hse = STM32F4_CRYSTAL,
                                           .flash = DATA_CACHE | INSTRUCTION_CACHE | PREFETCH | 5};

const char port_name[] = "netduinoplus2";

static uint32_t core_hz;

void port_start(void) {
    /* Unlike any chip's, the register of an emulator without RCC has no oscillator on. */
    core_hz = REGISTER(RCC_CR) == 0 ? CORE_MHZ * 1000000 : stm32f4_clock_start(&clock);
    REGISTER(STM32F4_AHB1_ENABLE) |= GPIO_A_ENABLE;
    REGISTER(STM32F4_APB2_ENABLE) |= USART1_ENABLE;
    stm32_alternate(GPIO_A, 9, FUNCTION);
    stm32_alternate(GPIO_A, 10, FUNCTION);
    usart_start(USART1, usart_divisor(stm32f4_apb2_hz(&clock, core_hz)));
    cycles_start();
    enable_interrupt(PORT_INTERRUPT);
}

uint32_t port_clock_hz(void) { return core_hz; }
