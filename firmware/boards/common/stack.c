/* How deep the stack has been: what lies below is filled with a pattern, and later looked through for it. */
#include "port.h"

#define PAINT 0xa5a5a5a5u

extern uint32_t stack_limit[], stack_top[];

/* In assembly, so that no frame of its own lies in what it paints. */
__attribute__((naked)) void port_paint_stack(void) {
    __asm__ volatile(
        "ldr r0, =stack_limit\n\t"
        "mov r1, %0\n"
        "0: cmp r0, sp\n\t"
        "beq 1f\n\t"
        "str r1, [r0], #4\n\t"
        "b 0b\n"
        "1: bx lr\n\t"
        ".ltorg"
        :
        : "i"(PAINT));
}

uint32_t port_stack_bytes(void) {
    const volatile uint32_t *word = stack_limit;
    while (word < stack_top && *word == PAINT) ++word;
    return (uint32_t)((uintptr_t)stack_top - (uintptr_t)word);
}
