/* Instructions of the DSP extension that C has no operator for. */
#ifndef MS_DSP_H
#define MS_DSP_H

#include <string.h>

#include "requantize.h"

/* Bytes 0 and 2 of a word, sign-extended, as two halfwords. */
static inline uint32_t ms_sxtb16(uint32_t x) {
    uint32_t result;
    __asm__("sxtb16 %0, %1" : "=r"(result) : "r"(x));
    return result;
}

/* Bytes 1 and 3. */
static inline uint32_t ms_sxtb16_ror8(uint32_t x) {
    uint32_t result;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(result) : "r"(x));
    return result;
}

/* Adds bytes 0 and 2 of x, sign-extended, to two halfwords. */
static inline uint32_t ms_sxtab16(uint32_t two, uint32_t x) {
    uint32_t result;
    __asm__("sxtab16 %0, %1, %2" : "=r"(result) : "r"(two), "r"(x));
    return result;
}

/* Adds bytes 1 and 3. */
static inline uint32_t ms_sxtab16_ror8(uint32_t two, uint32_t x) {
    uint32_t result;
    __asm__("sxtab16 %0, %1, %2, ror #8" : "=r"(result) : "r"(two), "r"(x));
    return result;
}

/* The larger of each pair of signed bytes. */
static inline uint32_t ms_max8(uint32_t x, uint32_t y) {
    uint32_t result;
    __asm__("ssub8 %0, %1, %2\n"
            "sel %0, %1, %2"
            : "=&r"(result)
            : "r"(x), "r"(y));
    return result;
}

/* sum + both products of halfwords. */
static inline int32_t ms_smlad(uint32_t x, uint32_t y, int32_t sum) {
    int32_t result;
    __asm__("smlad %0, %1, %2, %3" : "=r"(result) : "r"(x), "r"(y), "r"(sum));
    return result;
}

/* Bottom halfwords of low and high as one word. */
static inline uint32_t ms_pkhbt(uint32_t low, uint32_t high) {
    uint32_t result;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(result) : "r"(low), "r"(high));
    return result;
}

/* Top halfwords of high and low as one word. */
static inline uint32_t ms_pkhtb(uint32_t high, uint32_t low) {
    uint32_t result;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(result) : "r"(high), "r"(low));
    return result;
}

/* x * y / 2^32, halves rounded upwards. */
static inline int32_t ms_smmulr(int32_t x, int32_t y) {
    int32_t result;
    __asm__("smmulr %0, %1, %2" : "=r"(result) : "r"(x), "r"(y));
    return result;
}

/* sum + x * y / 2^32, halves rounded upwards. */
static inline int32_t ms_smmlar(int32_t x, int32_t y, int32_t sum) {
    int32_t result;
    __asm__("smmlar %0, %1, %2, %3" : "=r"(result) : "r"(x), "r"(y), "r"(sum));
    return result;
}

/* x / 2, rounded down, saturated to int8. */
static inline int32_t ms_half_as_int8(int32_t x) {
    int32_t result;
    __asm__("ssat %0, #8, %1, asr #1" : "=r"(result) : "r"(x) : "cc");
    return result;
}

/* `ms_requantize_coded` where nothing overflows and the code divides; round is 2 * zero point + 1. */
static inline int32_t ms_requantize_divided(int32_t x, int32_t multiplier, uint32_t code, int32_t round) {
    const int32_t high = ms_smmulr(x * 2, multiplier);
    return ms_half_as_int8(((high + (high >> 31)) >> code) + round);
}

/* `ms_requantize_coded` where nothing overflows. */
static inline int32_t ms_requantize_fast(int32_t x, int32_t multiplier, uint32_t code, int32_t round) {
    if (code < MS_UNDIVIDED) {
        return ms_requantize_divided(x, multiplier, code, round);
    }
    return ms_half_as_int8(ms_smmulr(x << (code - MS_UNDIVIDED + 1), multiplier) * 2 + round);
}

/* Any alignment. */
static inline uint32_t ms_load_word(const void *bytes) {
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

#endif
