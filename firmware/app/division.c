/* Bit by bit: quotient bits take the place of those of the dividend. */
#include "division.h"

uint32_t divide(uint64_t *value, uint32_t divisor) {
    uint64_t rest = *value;
    uint32_t remainder = 0;
    for (int bit = 0; bit < 64; bit++) {
        remainder = remainder << 1 | (uint32_t)(rest >> 63);
        rest <<= 1;
        if (remainder >= divisor) {
            remainder -= divisor;
            rest |= 1u;
        }
    }
    *value = rest;
    return remainder;
}
