/* TFLite Micro's rounding, defined once in C: gemmlowp's doubling high multiplication (halves upwards), then
 * a division by a power of two (halves away from zero). Source: kernels/internal/common.cc. */
#ifndef MS_REQUANTIZE_H
#define MS_REQUANTIZE_H

#include <stdint.h>

/* x * multiplier / 2^31; multiplier is not negative. */
static inline int32_t ms_doubling_high_multiply(int32_t x, int32_t multiplier) {
    return (int32_t)(((int64_t)x * multiplier + (1 << 30)) >> 31);
}

/* x / 2^bits, bits 0..31. */
static inline int32_t ms_divide_by_power_of_two(int32_t x, uint32_t bits) {
    const int64_t half = ((int64_t)1 << bits) >> 1;
    return (int32_t)((x + half - (x < 0 && bits > 0)) >> bits);
}

static inline int8_t ms_clamped(int32_t x, int32_t low, int32_t high) {
    return (int8_t)(x < low ? low : x > high ? high : x);
}

/* x * multiplier * 2^(shift - 31) + zero_point, as int8; shift positive to the left, where it may wrap. */
static inline int8_t ms_requantize(int32_t x, int32_t multiplier, int32_t shift, int32_t zero_point) {
    const int32_t shifted = shift > 0 ? (int32_t)((uint32_t)x << shift) : x;
    const int32_t high = ms_doubling_high_multiply(shifted, multiplier);
    return ms_clamped(ms_divide_by_power_of_two(high, shift < 0 ? -shift : 0) + zero_point, -128, 127);
}

/* A shift as streams hold it: the bits of a division less one, or MS_UNDIVIDED + bits to the left. */
enum { MS_UNDIVIDED = 0x80 };

static inline int8_t ms_requantize_coded(int32_t x, int32_t multiplier, uint32_t code, int32_t zero_point) {
    const int32_t shift = code < MS_UNDIVIDED ? -1 - (int32_t)code : (int32_t)code - MS_UNDIVIDED;
    return ms_requantize(x, multiplier, shift, zero_point);
}

#endif
