/* The DSP family's sums of products around its assembly (dot_dsp.S). */
#include "dot.h"
#include "dot_exact.h"

#if defined(__ARM_FEATURE_DSP)
#include "dsp.h"

void ms_dot_3_pairs(const int16_t *columns, const int32_t *stream, int8_t *const out[MS_PIXELS],
                    uint32_t pairs, int32_t round, uint32_t groups);

void ms_dot_3(const ms_products *products, const int16_t *columns, int8_t *const out[MS_PIXELS]) {
    uint32_t first = 0;
    if (!products->large && products->out_channels > 1) {
        first = products->out_channels & ~1u;
        ms_dot_3_pairs(columns, products->stream, out, first / 2, 2 * products->out_zero_point + 1,
                       products->groups);
    }
    for (uint32_t pixel = 0; first < products->out_channels && pixel < MS_PIXELS; pixel++) {
        ms_dot_exact(products, columns + pixel * MS_GROUP, MS_PIXELS * MS_GROUP, out[pixel], first);
    }
}

void ms_dot_1(const ms_products *products, const int16_t *column, int8_t *out) {
    const int32_t *stream = products->stream;
    const int32_t round = 2 * products->out_zero_point + 1;
    uint32_t channel = 0;
    for (; !products->large && channel + 2 <= products->out_channels; channel += 2) {
        int32_t sum_a = *stream++, sum_b = *stream++;
        const uint32_t *x = (const uint32_t *)column;
        for (uint32_t group = 0; group < products->groups; group++, x += 2, stream += 2) {
            const uint32_t a = (uint32_t)stream[0], b = (uint32_t)stream[1];
            sum_a = ms_smlad(x[0], ms_sxtb16(a), sum_a);
            sum_b = ms_smlad(x[0], ms_sxtb16(b), sum_b);
            sum_a = ms_smlad(x[1], ms_sxtb16_ror8(a), sum_a);
            sum_b = ms_smlad(x[1], ms_sxtb16_ror8(b), sum_b);
        }
        out[channel] = (int8_t)ms_requantize_fast(sum_a, stream[0], (uint32_t)stream[2] & 0xff, round);
        out[channel + 1] = (int8_t)ms_requantize_fast(sum_b, stream[1], (uint32_t)stream[2] >> 16, round);
        stream += 3;
    }
    ms_dot_exact(products, column, MS_GROUP, out, channel);
}

#endif
