/* The UART of Arm's Cortex-M System Design Kit (DDI 0479, "APB UART"), as Arm's FPGA images have it. */
#ifndef MICROSTILL_CMSDK_UART_H
#define MICROSTILL_CMSDK_UART_H

#include <stddef.h>
#include <stdint.h>

/* `base`: its address. `clock_hz`: of its bus. Its receive interrupt is on when this returns. */
void cmsdk_uart_start(uintptr_t base, uint32_t clock_hz);

/* Returns when the last byte is in the transmitter. */
void cmsdk_uart_write(const uint8_t *bytes, size_t count);

/* Hands what came in to receive_byte() and receive_error(). */
void cmsdk_uart_interrupt(void);

#endif
