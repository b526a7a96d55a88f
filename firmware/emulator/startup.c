/* Start of a program on an emulated Cortex-M core: vectors, FPU, memory, and what is said of a fault. */
#include "semihost.h"

#include <stdint.h>

extern uint32_t stack_limit[], stack_top[], fault_stack_top[];
extern uint32_t data_start[], data_end[], bss_start[], bss_end[];
extern const uint32_t data_load[];

int main(void);
void semihost_report(const char *what, uint32_t value);
void reset_handler(void);
void fault_handler(void);
void start_program(void);
void report_fault(const uint32_t *frame);

struct vectors {
  uint32_t *stack;
  void (*handlers[15])(void);
};

__attribute__((section(".vectors"), used)) static const struct vectors vectors = {
    stack_top,
    {reset_handler, fault_handler, fault_handler, fault_handler, fault_handler, fault_handler, fault_handler,
     fault_handler, fault_handler, fault_handler, fault_handler, fault_handler, fault_handler, fault_handler,
     fault_handler}};

/*
 * Grants access to coprocessors 10 and 11, the FPU and MVE (CPACR at 0xe000ed88; ignored where there are
 * none), before any compiled code could use them.
 */
__attribute__((naked)) void reset_handler(void) {
  __asm__ volatile(
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
 * Takes access to the MiB below the stack away where the bus does not, with region 0 of the ARMv7-M memory
 * protection unit (ARM DDI 0403, section B3.5).
 */
static void guard_stack(void) {
#if defined(__ARM_ARCH_7M__) || defined(__ARM_ARCH_7EM__)
  enum { MIB = 1 << 20, BASE_VALID = 1 << 4, SIZE_MIB = 19 << 1, ENABLE = 1, DEFAULT_MAP = 1 << 2 };
  volatile uint32_t *const mpu = (volatile uint32_t *)0xe000ed90u; /* type, control, number, base, size */
  mpu[3] = ((uint32_t)stack_limit - MIB) | BASE_VALID;
  mpu[4] = SIZE_MIB | ENABLE;
  mpu[1] = DEFAULT_MAP | ENABLE;
  __asm__ volatile("dsb\n\tisb" : : : "memory");
#endif
}

__attribute__((used)) void start_program(void) {
  const volatile uint32_t *from = data_load;
  for (volatile uint32_t *to = data_start; to < data_end; ++to) *to = *from++;
  for (volatile uint32_t *to = bss_start; to < bss_end; ++to) *to = 0;
  guard_stack();
  semihost_exit(main());
}

/* The frame that the core pushed may lie below the stack, so the report has a stack of its own. */
__attribute__((naked)) void fault_handler(void) {
  __asm__ volatile(
      "mov r0, sp\n\t"
      "ldr r1, =fault_stack_top\n\t"
      "mov sp, r1\n\t"
      "b report_fault\n\t"
      ".ltorg");
}

__attribute__((used)) void report_fault(const uint32_t *frame) {
  if (frame < stack_limit) {
    semihost_report("overflow", (uint32_t)frame);
  } else {
    semihost_report("fault", frame[6]);
  }
  semihost_exit(1);
}
