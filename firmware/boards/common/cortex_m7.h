/* Caches of a Cortex-M7 (ARM DDI 0403, section B2.2, Caches and branch predictors). */
#ifndef MICROSTILL_CORTEX_M7_H
#define MICROSTILL_CORTEX_M7_H

#include <stdint.h>

#include "core.h"

/* Empties both caches and turns them on; memory that no DMA shares needs no more care. */
static inline void cortex_m7_caches_on(void) {
    enum { DATA_CACHE = 1 << 16, INSTRUCTION_CACHE = 1 << 17, WAYS = 4, SET = 5, WAY = 30 };
    REGISTER(0xe000ed84u) = 0; /* CSSELR: the data cache of level 1 */
    __asm__ volatile("dsb" : : : "memory");
    const uint32_t sets = (REGISTER(0xe000ed80u) >> 13 & 0x7fff) + 1; /* CCSIDR */
    for (uint32_t set = 0; set < sets; set++) {
        for (uint32_t way = 0; way < WAYS; way++) REGISTER(0xe000ef60u) = set << SET | way << WAY; /* DCISW */
    }
    REGISTER(0xe000ef50u) = 0; /* ICIALLU */
    __asm__ volatile("dsb\n\tisb" : : : "memory");
    REGISTER(0xe000ed14u) |= DATA_CACHE | INSTRUCTION_CACHE; /* CCR */
    __asm__ volatile("dsb\n\tisb" : : : "memory");
}

#endif
