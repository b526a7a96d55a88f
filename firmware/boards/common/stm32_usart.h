/*
 * The USART of an STM32 as the serial port: defines port_write() and port_interrupt(). Of two generations, in
 * two files with the same symbols: stm32_usart_v1.c for the F4 (RM0390, USART registers: SR and DR),
 * stm32_usart_v2.c for F7, H7 and L4 (RM0385, USART registers: ISR, RDR and TDR), the LPUART among them.
 */
#ifndef MICROSTILL_STM32_USART_H
#define MICROSTILL_STM32_USART_H

#include <stdint.h>

/*
 * Starts the USART at `base`, whose clock and pins are on: 8N1, receive interrupt on.
 * divisor: what its baud rate register takes.
 */
void usart_start(uintptr_t base, uint32_t divisor);

/* Divisor of a USART that samples 16 times a bit: clock / baud, rounded. */
static inline uint32_t usart_divisor(uint32_t clock_hz) { return (clock_hz + PORT_BAUD / 2) / PORT_BAUD; }

/* Divisor of an LPUART: 256 times as large. */
static inline uint32_t lpuart_divisor(uint32_t clock_hz) {
    return clock_hz / PORT_BAUD * 256 + (clock_hz % PORT_BAUD * 256 + PORT_BAUD / 2) / PORT_BAUD;
}

#endif
