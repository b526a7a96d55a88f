/* Start of the application on a Cortex-M core, and what happens on a fault: it is told, then all starts anew. */
#include <stdint.h>
#include <string.h>

#include "core.h"
#include "port.h"

extern uint32_t stack_limit[], stack_top[], fault_stack_top[];
extern uint32_t data_start[], data_end[], bss_start[], bss_end[];
extern const uint32_t data_load[];

int main(void);
void reset_handler(void);
void fault_handler(void);
void start_program(void);
void tell_fault(const uint32_t *frame);

typedef void (*handler)(void);

enum { SYSTEM_HANDLERS = 15, SYSTICK = 14 };

struct vectors {
    uint32_t *stack;
    handler system[SYSTEM_HANDLERS];
    handler external[PORT_INTERRUPT + 1];
};

/* Interrupts after the port's have no entry, because nothing enables them. */
extern const struct vectors vectors;
__attribute__((section(".vectors"), used)) const struct vectors vectors = {
    stack_top,
    {reset_handler, fault_handler, fault_handler, fault_handler, fault_handler, fault_handler, fault_handler,
     fault_handler, fault_handler, fault_handler, fault_handler, fault_handler, fault_handler, fault_handler,
     cycles_interrupt},
    {[PORT_INTERRUPT] = port_interrupt}};

#if defined(__ARM_ARCH_8M_MAIN__) || defined(__ARM_ARCH_8_1M_MAIN__)
#define HAS_STACK_LIMIT 1
#define NO_STACK_LIMIT "movs r0, #0\n\tmsr msplim, r0\n\t"
#else
#define HAS_STACK_LIMIT 0
#define NO_STACK_LIMIT ""
#endif

/*
 * Grants access to coprocessors 10 and 11, the FPU and MVE (CPACR at 0xe000ed88), before any compiled code
 * could use them. A bootloader may have left its stack and interrupts that are enabled; none is taken before
 * start_program() has turned them off.
 */
__attribute__((naked)) void reset_handler(void) {
    __asm__ volatile(
        "cpsid i\n\t" NO_STACK_LIMIT
        "ldr r0, =stack_top\n\t"
        "mov sp, r0\n\t"
        "ldr r0, =0xe000ed88\n\t"
        "ldr r1, [r0]\n\t"
        "orr r1, r1, #0xf00000\n\t"
        "str r1, [r0]\n\t"
        "dsb\n\t"
        "isb\n\t"
        "b start_program\n\t"
        ".ltorg");
}

/*
 * Makes an overflow of the stack a fault: by its limit on ARMv8-M; on ARMv7-M by region 0 of the memory
 * protection unit over the MiB below the stack (ARM DDI 0403, section B3.5), which may not be accessed.
 */
static void guard_stack(void) {
#if HAS_STACK_LIMIT
    __asm__ volatile("msr msplim, %0" : : "r"(stack_limit));
#else
    enum { MIB = 1 << 20, BASE_VALID = 1 << 4, SIZE_MIB = 19 << 1, ENABLE = 1, DEFAULT_MAP = 1 << 2 };
    volatile uint32_t *const mpu = (volatile uint32_t *)0xe000ed90u; /* type, control, number, base, size */
    mpu[3] = (uint32_t)stack_limit - MIB + BASE_VALID;
    mpu[4] = SIZE_MIB | ENABLE;
    mpu[1] = DEFAULT_MAP | ENABLE;
    __asm__ volatile("dsb\n\tisb" : : : "memory");
#endif
}

__attribute__((used, noreturn)) void start_program(void) {
    memcpy(data_start, data_load, (uintptr_t)data_end - (uintptr_t)data_start);
    memset(bss_start, 0, (uintptr_t)bss_end - (uintptr_t)bss_start);
    enum { SYSTICK_CONTROL = 0x010 / 4, DISABLE_INTERRUPTS = 0x180 / 4, VECTOR_TABLE = 0xd08 / 4, WORDS = 8 };
    volatile uint32_t *const core = (volatile uint32_t *)0xe000e000u;
    core[SYSTICK_CONTROL] = 0;
    for (int word = 0; word < WORDS; word++) core[DISABLE_INTERRUPTS + word] = ~(uint32_t)0;
    core[VECTOR_TABLE] = (uint32_t)&vectors;
    guard_stack();
    __asm__ volatile("cpsie i" : : : "memory");
    main();
    __builtin_unreachable(); /* the application never ends */
}

/* The frame that the core pushed may lie below the stack, so what is told has a stack of its own. */
__attribute__((naked)) void fault_handler(void) {
    __asm__ volatile(
        "mov r0, sp\n\t"
        "ldr r1, =fault_stack_top\n\t"
        "mov sp, r1\n\t"
        "b tell_fault\n\t"
        ".ltorg");
}

/* One line that says where, if the port can send it, then a reset: the host sees the start-up lines again. */
__attribute__((used, noreturn)) void tell_fault(const uint32_t *frame) {
    static const char begin[] = "\r\ne-[Fault at ", overflow[] = "the stack's end", end[] = "]\r\n";
    enum { PC = 6, STACK_OVERFLOW = 1 << 20, BYTE_ROUNDS = 1 << 16 };
    if (cycles_started()) {
        port_write(begin, sizeof begin - 1);
        if (frame < stack_limit || REGISTER(0xe000ed28u) & STACK_OVERFLOW) { /* CFSR */
            port_write(overflow, sizeof overflow - 1);
        } else {
            char digits[8];
            uint32_t rest = frame[PC];
            for (int i = sizeof digits - 1; i >= 0; i--, rest >>= 4) {
                const char digit = (char)(rest & 15u);
                digits[i] = (char)(digit + (digit < 10 ? '0' : 'a' - 10));
            }
            port_write(digits, sizeof digits);
        }
        port_write(end, sizeof end - 1);
        /* The reset would cut off what the transmitter still holds; a byte takes some 10,000 cycles. */
        for (int rounds = 0; rounds < BYTE_ROUNDS; rounds++) __asm__ volatile("");
    }
    REGISTER(0xe000ed0cu) = 0x05fa0004u; /* AIRCR: SYSRESETREQ */
    for (;;) {
    }
}
