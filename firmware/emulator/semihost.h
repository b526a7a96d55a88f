/*
 * What a program on an emulated Cortex-M core says to its host, and the section of it that is measured.
 *
 * A program is `int main(void)`; its return value is the exit status of the emulator. Output goes through
 * semihosting ("Semihosting for AArch32 and AArch64", from Arm), which QEMU serves with
 * `-semihosting-config enable=on,target=native`; on a device without a debugger each call is a HardFault.
 */
#ifndef MICROSTILL_SEMIHOST_H
#define MICROSTILL_SEMIHOST_H

#ifdef __cplusplus
extern "C" {
#endif

/* Writes `length` bytes to the emulator's standard output. */
void semihost_write(const char *text, unsigned length);

/* Ends the emulator with `status`, 0 to 255. Does not return. */
void semihost_exit(int status) __attribute__((noreturn));

/*
 * Bytes of stack that the measured section wrote below the frame that called measure_begin() and
 * measure_end(). What a function reserves and never writes is not seen.
 */
unsigned stack_high_water(void);

/*
 * The measured section, once in a program and both calls in one function. Instructions are counted from the
 * last one of measure_begin(), its return, up to and without the first one of measure_end(): a section of
 * no code counts two, this return and the call. measure_begin() paints the free stack; measure_end() finds
 * the high-water mark and reports it to the host.
 */
void measure_begin(void);
void measure_end(void);

#ifdef __cplusplus
}
#endif

#endif
