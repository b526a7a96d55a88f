/* Division of 64-bit numbers in some bytes of code; the compiler's library takes hundreds. */
#ifndef MICROSTILL_DIVISION_H
#define MICROSTILL_DIVISION_H

#include <stdint.h>

/* Divides *value and returns the remainder. divisor: 1 to 2^31. */
uint32_t divide(uint64_t *value, uint32_t divisor);

#endif
