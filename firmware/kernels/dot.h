/* The inner loops of convolutions and fully connected layers, one definition a kernel family. */
#ifndef MS_DOT_H
#define MS_DOT_H

#include "microstill.h"

/* A column holds int16 in groups of four, in the order 0, 2, 1, 3 of the bytes that they come from. */
enum { MS_GROUP = 4, MS_PIXELS = 3 };

/* Widens `groups` times four bytes to a column whose groups lie `step` elements apart; returns its end. */
#if defined(__ARM_FEATURE_DSP)
static inline int16_t *ms_widen(const int8_t *bytes, uint32_t groups, int16_t *column, uint32_t step) {
    const uint32_t column_bytes = step * sizeof *column;
    uint32_t odd, even;
    if (groups == 0) {
        return column;
    }
    if (groups % 2 != 0) {
        __asm__ volatile("ldr %[even], [%[from]], #4\n"
                         "sxtb16 %[odd], %[even], ror #8\n"
                         "sxtb16 %[even], %[even]\n"
                         "strd %[even], %[odd], [%[to]]\n"
                         "add %[to], %[to], %[step]\n"
                         : [from] "+r"(bytes), [to] "+r"(column), [odd] "=&r"(odd), [even] "=&r"(even)
                         : [step] "r"(column_bytes)
                         : "memory");
        groups--;
    }
    for (; groups > 0; groups -= 2) {
        __asm__ volatile("ldr %[even], [%[from]], #4\n"
                         "sxtb16 %[odd], %[even], ror #8\n"
                         "sxtb16 %[even], %[even]\n"
                         "strd %[even], %[odd], [%[to]]\n"
                         "ldr %[even], [%[from]], #4\n"
                         "add %[to], %[to], %[step]\n"
                         "sxtb16 %[odd], %[even], ror #8\n"
                         "sxtb16 %[even], %[even]\n"
                         "strd %[even], %[odd], [%[to]]\n"
                         "add %[to], %[to], %[step]\n"
                         : [from] "+r"(bytes), [to] "+r"(column), [odd] "=&r"(odd), [even] "=&r"(even)
                         : [step] "r"(column_bytes)
                         : "memory");
    }
    return column;
}
#else
static inline int16_t *ms_widen(const int8_t *bytes, uint32_t groups, int16_t *column, uint32_t step) {
    for (; groups > 0; groups--, bytes += MS_GROUP, column += step) {
        column[0] = bytes[0];
        column[1] = bytes[2];
        column[2] = bytes[1];
        column[3] = bytes[3];
    }
    return column;
}
#endif

/* All output channels of three pixels, whose columns are interleaved by groups: out[p][channel]. */
void ms_dot_3(const ms_products *products, const int16_t *columns, int8_t *const out[MS_PIXELS]);

/* The same for one pixel. */
void ms_dot_1(const ms_products *products, const int16_t *column, int8_t *out);

#endif
