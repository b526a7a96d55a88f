/*
 * What every Cortex-M port shares: start-up, cycle counter, registers of the core.
 *
 * A port's receive interrupt is port_interrupt(); its number in the NVIC is `interrupt` of board.toml, which
 * arrives here as PORT_INTERRUPT. A port_start() ends with cycles_start() and enable_interrupt().
 */
#ifndef MICROSTILL_CORE_H
#define MICROSTILL_CORE_H

#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))

/* By the port: serves its serial port, calls receive_byte() and receive_error(). */
void port_interrupt(void);

/* Starts the counters behind port_cycles() and port_lap(), once the core has its final clock. */
void cycles_start(void);

/* Whether they run, and so whether the port is ready to tell of a fault. */
int cycles_started(void);

/* Called 2^24 cycles after another. */
void cycles_interrupt(void);

/* Lets external interrupt `number` through. All have the same priority: none interrupts another. */
static inline void enable_interrupt(unsigned number) {
    REGISTER(0xe000e100u + number / 32 * 4) = (uint32_t)1 << number % 32;
}

#endif
