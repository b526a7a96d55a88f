/* The portable family's inner loops of depthwise convolutions. */
#include "depthwise.h"

#if !defined(__ARM_FEATURE_DSP)

void ms_depthwise_copy(const ms_depthwise_rows *rows, uint32_t first, uint32_t count, const int8_t *in) {
    ms_depthwise_plain_copy(rows, first, count, in);
}

void ms_depthwise_band(const ms_depthwise_rows *rows, uint32_t channel, int8_t *out) {
    const uint32_t multiplier = rows->layer->depth_multiplier;
    for (uint32_t index = 0; index < rows->lanes * multiplier; index++) {
        ms_depthwise_plain(rows, channel + index, rows->copy + index / multiplier * rows->lane, out + index);
    }
}

#endif
