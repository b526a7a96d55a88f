/* Pins of an STM32 of the families F4, F7, H7 and L4: their GPIO ports have the same registers. */
#ifndef MICROSTILL_STM32_GPIO_H
#define MICROSTILL_STM32_GPIO_H

#include <stdint.h>

/*
 * Gives pin `pin` (0 to 15) of the port at `port`, as it is after reset, to its alternate function. Pulled
 * up, so that a line which nothing drives is idle, and no edge goes out before the transmitter is on.
 */
void stm32_alternate(uintptr_t port, unsigned pin, uint32_t function);

#endif
