/* The DSP family's elementwise sum. */
#include "add.h"

#if defined(__ARM_FEATURE_DSP)
#include "dsp.h"

/* What elements are added with. zeros: of in_1 and in_2, on their grids. multiplier_out: twice the layer's, less
 * 2^32. round: 2 * zero point + 1. */
typedef struct {
    int32_t zero_1, zero_2, multiplier, half, multiplier_out, round;
    uint32_t shift, shift_out;
} scaling;

/* A sum, divided and with the output's zero point. */
static inline int8_t scaled(int32_t sum, const scaling *s) {
    const int32_t high = ms_smmlar(sum, s->multiplier_out, sum + (sum >> 31));
    return (int8_t)ms_half_as_int8((high >> s->shift_out) + s->round);
}

/* Halves are rounded away from zero: the sign of a product is that of its factor, or the product is zero. */
static inline int8_t add_scaled(int32_t one, int32_t other, const scaling *s) {
    const int32_t x = other * (1 << 21) - s->zero_2;
    const int32_t x_scaled = ms_smmlar(x, s->multiplier, s->half + (x >> 31)) >> s->shift;
    return scaled(one * (1 << 19) - s->zero_1 + x_scaled, s);
}

void ms_add(const ms_addition *layer, const int8_t *in_1, const int8_t *in_2, int8_t *out, uint32_t count) {
    const uint32_t shift = layer->shift_2;
    const scaling s = {.zero_1 = layer->zero_point_1 * (1 << 19),
                       .zero_2 = layer->zero_point_2 * (1 << 21),
                       .multiplier = layer->multiplier_2,
                       .half = shift > 0 ? 1 << (shift - 1) : 0,
                       .multiplier_out = (int32_t)((uint32_t)layer->multiplier_out * 2),
                       .round = 2 * layer->zero_point_out + 1,
                       .shift = shift,
                       .shift_out = layer->shift_out};
    const int8_t *const end = in_1 + count;
    if (s.shift_out >= MS_UNDIVIDED) {
        while (in_1 < end) {
            *out++ = ms_add_one(layer, *in_1++, *in_2++);
        }
        return;
    }
    if (shift == 0) {
        const int32_t zero = s.zero_1 + layer->zero_point_2 * (1 << 19);
        while (in_1 < end) {
            *out++ = scaled((*in_1++ + *in_2++) * (1 << 19) - zero, &s);
        }
        return;
    }
    if (count % 2 != 0) {
        *out++ = add_scaled(*in_1++, *in_2++, &s);
    }
    while (in_1 < end) {
        *out++ = add_scaled(*in_1++, *in_2++, &s);
        *out++ = add_scaled(*in_1++, *in_2++, &s);
    }
}

#endif
