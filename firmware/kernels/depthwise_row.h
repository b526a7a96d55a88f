/* Rows of an image copied for depthwise convolutions: padded, widened, one channel after the other. */
#ifndef MS_DEPTHWISE_ROW_H
#define MS_DEPTHWISE_ROW_H

#include <stddef.h>

#include "microstill.h"
#if defined(__ARM_FEATURE_DSP)
#include "dsp.h"
#endif

/* A row of one channel, written plainly. */
static inline void ms_depthwise_plain_row(const ms_window *w, const int8_t *in, int16_t *copy,
                                          uint32_t elements) {
    int16_t *const end = copy + elements;
    int16_t *const left = in ? copy + (w->pad_left < elements ? w->pad_left : elements) : end;
    const uint32_t room = (uint32_t)(end - left);
    int16_t *const right = left + (room < w->in_width ? room : w->in_width);
    while (copy < left) {
        *copy++ = w->fill;
    }
    for (; copy < right; in += w->channels) {
        *copy++ = *in;
    }
    while (copy < end) {
        *copy++ = w->fill;
    }
}

/* Copies a row of one channel, or of MS_LANES, whose copies lie `lane` elements apart: borders left and right
 * hold the window's fill. in: the row's first element; NULL is a row of borders. */
#if defined(__ARM_FEATURE_DSP)
static inline void put(int16_t *copy, uint32_t two) {
    memcpy(copy, &two, sizeof two);
}

/* Two pixels of four channels to their copies. */
static inline void put_lanes(int16_t *copy, uint32_t lane, uint32_t one, uint32_t other) {
    const uint32_t one_02 = ms_sxtb16(one), one_13 = ms_sxtb16_ror8(one);
    const uint32_t other_02 = ms_sxtb16(other), other_13 = ms_sxtb16_ror8(other);
    put(copy, ms_pkhbt(one_02, other_02));
    put(copy + lane, ms_pkhbt(one_13, other_13));
    put(copy + 2 * lane, ms_pkhtb(other_02, one_02));
    put(copy + 3 * lane, ms_pkhtb(other_13, one_13));
}

static inline void ms_depthwise_row(const ms_window *window, const int8_t *in, uint32_t lanes, int16_t *copy,
                      uint32_t elements, uint32_t lane) {
    const ms_window *const w = window;
    const uint32_t fill = (uint8_t)w->fill * 0x01010101u, channels = w->channels;
    if (lanes == 1 || (in && w->pad_left > 1)) {
        for (uint32_t l = 0; l < lanes; l++, copy += lane) {
            ms_depthwise_plain_row(w, in ? in + l : in, copy, elements);
        }
        return;
    }
    int16_t *const end = copy + elements;
    uint32_t left = in ? w->in_width : 0;
    if (left > 0 && w->pad_left == 1) {
        put_lanes(copy, lane, fill, ms_load_word(in));
        copy += 2, in += channels, left--;
    }
    for (; left >= 2 && copy < end; left -= 2, copy += 2, in += 2 * channels) {
        put_lanes(copy, lane, ms_load_word(in), ms_load_word(in + channels));
    }
    if (left == 1 && copy < end) {
        put_lanes(copy, lane, ms_load_word(in), fill);
        copy += 2;
    }
    for (; copy < end; copy += 2) {
        put_lanes(copy, lane, fill, fill);
    }
}
#else
static inline void ms_depthwise_row(const ms_window *window, const int8_t *in, uint32_t lanes, int16_t *copy,
                      uint32_t elements, uint32_t lane) {
    for (uint32_t l = 0; l < lanes; l++, copy += lane) {
        ms_depthwise_plain_row(window, in ? in + l : in, copy, elements);
    }
}
#endif

#endif
