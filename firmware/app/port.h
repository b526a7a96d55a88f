/*
 * What the application needs of a board. Each folder of firmware/boards has a port.c that defines the four
 * functions of the first part; what all Cortex-M boards share is in firmware/boards/common.
 */
#ifndef MICROSTILL_PORT_H
#define MICROSTILL_PORT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* --- by the board ------------------------------------------------------------------------------------- */

/* Name of the board, its folder's. */
extern const char port_name[];

/*
 * Brings the core to full speed with caches and flash wait states, starts the serial port at PORT_BAUD, 8N1,
 * with its receive interrupt on, and the cycle counter. Called once, before all else, by main.
 */
void port_start(void);

/* Clock of the core in Hz, as port_start() left it; cycles are counted at this rate. */
uint32_t port_clock_hz(void);

/* Sends bytes; returns when the last one is in the transmitter. */
void port_write(const void *bytes, size_t count);

/* --- by firmware/boards/common, or by a host ---------------------------------------------------------- */

/* Cycles since port_start(); does not wrap. Callable from an interrupt. */
uint64_t port_cycles(void);

/*
 * Cycles of a short section, the difference of two calls modulo 2^32: DWT CYCCNT, or port_cycles() where that
 * counter does not run.
 */
uint32_t port_lap(void);

/* Sleeps until an interrupt, unless `ready()` is not 0; no interrupt is lost between check and sleep. */
void port_wait(int (*ready)(void));

/*
 * Fills the free stack, from its limit (stack_limit of the linker script) up to the caller's frame, with a
 * pattern. Called once by main, after port_start().
 */
void port_paint_stack(void);

/*
 * Bytes of the stack, counted from its top (stack_top), that have been used at the deepest since
 * port_paint_stack(), interrupts included: from the lowest word without the pattern. 0 on a host.
 */
uint32_t port_stack_bytes(void);

/* --- by the application, called by the board's receive interrupt ---------------------------------------- */

/* A byte came in. */
void receive_byte(uint8_t byte);

/* A byte was lost or damaged: overrun, framing, noise. */
void receive_error(void);

#ifdef __cplusplus
}
#endif

#endif
