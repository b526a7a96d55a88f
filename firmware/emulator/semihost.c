#include "semihost.h"

#include <stdint.h>

enum { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE = 0x05, SYS_EXIT_EXTENDED = 0x20 };
enum { TO_STANDARD_OUTPUT = 4, TO_STANDARD_ERROR = 8 };
enum { ADP_STOPPED_APPLICATION_EXIT = 0x20026 };

const uint32_t stack_paint = 0xa5a5a5a5u;

static unsigned high_water;

void semihost_report(const char *what, uint32_t value);
void keep_high_water(unsigned bytes);

static uint32_t call_host(uint32_t operation, const uint32_t *arguments) {
  register uint32_t r0 __asm__("r0") = operation;
  register const uint32_t *r1 __asm__("r1") = arguments;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

static void write_to(uint32_t stream, const char *text, uint32_t length) {
  static const char console[] = ":tt";
  const uint32_t open[] = {(uint32_t)console, stream, sizeof console - 1};
  const uint32_t handle = call_host(SYS_OPEN, open);
  const uint32_t write[] = {handle, (uint32_t)text, length};
  call_host(SYS_WRITE, write);
  call_host(SYS_CLOSE, &handle);
}

void semihost_write(const char *text, unsigned length) { write_to(TO_STANDARD_OUTPUT, text, length); }

void semihost_exit(int status) {
  const uint32_t reason[] = {ADP_STOPPED_APPLICATION_EXIT, (uint32_t)status};
  for (;;) call_host(SYS_EXIT_EXTENDED, reason);
}

/* Tells export/emulation/emulate.py a value on standard error, as a line `what 0123abcd`. */
void semihost_report(const char *what, uint32_t value) {
  char line[32];
  uint32_t length = 0;
  while (what[length] != '\0') {
    line[length] = what[length];
    ++length;
  }
  line[length++] = ' ';
  for (int shift = 28; shift >= 0; shift -= 4) line[length++] = "0123456789abcdef"[value >> shift & 15u];
  line[length++] = '\n';
  write_to(TO_STANDARD_ERROR, line, length);
}

unsigned stack_high_water(void) { return high_water; }

__attribute__((used)) void keep_high_water(unsigned bytes) {
  high_water = bytes;
  semihost_report("stack", bytes);
}

/*
 * Both in assembly, so that no frame of their own lies in what they paint and scan. Counting starts at the
 * last instruction of measure_begin(), which is branched to because it has to begin a block (see plugin.c).
 */
__attribute__((naked)) void measure_begin(void) {
  __asm__ volatile(
      "ldr r0, =stack_limit\n\t"
      "ldr r1, =stack_paint\n\t"
      "ldr r1, [r1]\n"
      "0: cmp sp, r0\n\t"
      "beq 1f\n\t"
      "str r1, [r0], #4\n\t"
      "b 0b\n"
      "1: b measure_started\n\t"
      ".global measure_started\n\t"
      ".thumb_func\n"
      "measure_started: bx lr\n\t"
      ".ltorg");
}

__attribute__((naked)) void measure_end(void) {
  __asm__ volatile(
      "ldr r0, =stack_limit\n\t"
      "ldr r1, =stack_paint\n\t"
      "ldr r1, [r1]\n"
      "0: cmp sp, r0\n\t"
      "beq 1f\n\t"
      "ldr r2, [r0]\n\t"
      "cmp r2, r1\n\t"
      "bne 1f\n\t"
      "adds r0, r0, #4\n\t"
      "b 0b\n"
      "1: mov r1, sp\n\t"
      "subs r0, r1, r0\n\t"
      "b keep_high_water\n\t"
      ".ltorg");
}
