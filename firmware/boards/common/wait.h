/* Waiting for hardware that may never answer. */
#ifndef MICROSTILL_WAIT_H
#define MICROSTILL_WAIT_H

#include <stdint.h>

/*
 * Whether the bits of `mask` in the register at `address` come to be `value`, within 2^17 reads of some 10
 * cycles each: 80 ms at 16 MHz, 20 ms at 64 MHz. Crystals start within 10 ms, all else within 1 ms.
 */
int becomes(uintptr_t address, uint32_t mask, uint32_t value);

#endif
