/*
 * Cycles by two counters of the core: SysTick, 24 bits, extended by its interrupt, and the DWT's, 32 bits.
 * SysTick alone is in every core and every emulator; the DWT's takes fewer instructions to read.
 */
#include "core.h"
#include "port.h"

enum { SYSTICK_BITS = 24 };
enum { ENABLE = 1, INTERRUPT = 2, CORE_CLOCK = 4 }; /* control, of the DWT the first alone */

static volatile uint32_t wraps;
static uint8_t lap_counts;

static volatile uint32_t *const systick = (volatile uint32_t *)0xe000e010u; /* control, reload, value */
static volatile uint32_t *const dwt = (volatile uint32_t *)0xe0001000u;     /* control, cycles */

void cycles_start(void) {
    enum { ENABLE_TRACE = 1 << 24 };
    REGISTER(0xe000edfcu) |= ENABLE_TRACE; /* DEMCR */
    REGISTER(0xe0001fb0u) = 0xc5acce55u;   /* lock access register, there on the Cortex-M7 */
    dwt[1] = 0;
    dwt[0] |= ENABLE;
    systick[1] = (1u << SYSTICK_BITS) - 1;
    systick[2] = 0;
    systick[0] = ENABLE | INTERRUPT | CORE_CLOCK;
    lap_counts = dwt[1] != 0;
}

int cycles_started(void) { return systick[0] & ENABLE; }

void cycles_interrupt(void) { ++wraps; }

uint64_t port_cycles(void) {
    enum { PENDING = 1 << 26 };
    uint32_t mask;
    __asm__ volatile("mrs %0, primask\n\tcpsid i" : "=r"(mask) : : "memory");
    uint32_t value = systick[2], high = wraps;
    if (REGISTER(0xe000ed04u) & PENDING) { /* ICSR: it wrapped, and its interrupt has to wait */
        value = systick[2];
        ++high;
    }
    __asm__ volatile("msr primask, %0" : : "r"(mask) : "memory");
    /* The interrupt comes with the count of 0, which so is the first of a round. */
    return ((uint64_t)high << SYSTICK_BITS) + (-value & ((1u << SYSTICK_BITS) - 1));
}

uint32_t port_lap(void) { return lap_counts ? dwt[1] : (uint32_t)port_cycles(); }

/* Interrupts stay off between check and sleep; a pending one ends the sleep nevertheless. */
__attribute__((weak)) void port_wait(int (*ready)(void)) {
    __asm__ volatile("cpsid i" : : : "memory");
    if (!ready()) __asm__ volatile("dsb\n\twfi" : : : "memory");
    __asm__ volatile("cpsie i\n\tisb" : : : "memory");
}
