/* The portable family's sums of products; the DSP family uses the exact ones for unusual scales. */
#include "dot.h"

#include "dot_exact.h"

#if !defined(__ARM_FEATURE_DSP)

void ms_dot_3(const ms_products *products, const int16_t *columns, int8_t *const out[MS_PIXELS]) {
    for (uint32_t pixel = 0; pixel < MS_PIXELS; pixel++) {
        ms_dot_exact(products, columns + pixel * MS_GROUP, MS_PIXELS * MS_GROUP, out[pixel], 0);
    }
}

void ms_dot_1(const ms_products *products, const int16_t *column, int8_t *out) {
    ms_dot_exact(products, column, MS_GROUP, out, 0);
}

#endif
