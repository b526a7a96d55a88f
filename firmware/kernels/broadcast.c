/* Elementwise operators of tensors that broadcast, by the kernels for tensors that do not. */
#include <string.h>

#include "microstill.h"

typedef void row_kernel(const void *layer, const int8_t *in_1, const int8_t *in_2, int8_t *out, uint32_t count);

static void add_row(const void *layer, const int8_t *in_1, const int8_t *in_2, int8_t *out, uint32_t count) {
    ms_add(layer, in_1, in_2, out, count);
}

static void mul_row(const void *layer, const int8_t *in_1, const int8_t *in_2, int8_t *out, uint32_t count) {
    ms_mul(layer, in_1, in_2, out, count);
}

/* A row along which one input may repeat its first element. */
static void compute_row(const ms_broadcast *axes, row_kernel *compute, const void *layer, const int8_t *in_1,
                        const int8_t *in_2, int8_t *out) {
    enum { PIECE = 32 };
    int8_t repeated[PIECE];
    if (!axes->repeats_1 && !axes->repeats_2) {
        compute(layer, in_1, in_2, out, axes->row);
        return;
    }
    memset(repeated, axes->repeats_1 ? *in_1 : *in_2, sizeof repeated);
    for (uint32_t done = 0; done < axes->row; done += PIECE) {
        const uint32_t left = axes->row - done, count = left < PIECE ? left : PIECE;
        compute(layer, axes->repeats_1 ? repeated : in_1 + done, axes->repeats_2 ? repeated : in_2 + done,
                out + done, count);
    }
}

static void broadcast(const ms_broadcast *axes, row_kernel *compute, const void *layer, const int8_t *in_1,
                      const int8_t *in_2, int8_t *out) {
    uint32_t index[MS_AXES] = {0}, at_1 = 0, at_2 = 0, axis;
    do {
        compute_row(axes, compute, layer, in_1 + at_1, in_2 + at_2, out);
        out += axes->row;
        for (axis = 0; axis < MS_AXES; axis++) {
            at_1 += axes->steps_1[axis];
            at_2 += axes->steps_2[axis];
            if (++index[axis] < axes->sizes[axis]) {
                break;
            }
            at_1 -= index[axis] * axes->steps_1[axis];
            at_2 -= index[axis] * axes->steps_2[axis];
            index[axis] = 0;
        }
    } while (axis < MS_AXES);
}

void ms_add_broadcast(const ms_broadcast *axes, const ms_addition *layer, const int8_t *in_1,
                      const int8_t *in_2, int8_t *out) {
    broadcast(axes, add_row, layer, in_1, in_2, out);
}

void ms_mul_broadcast(const ms_broadcast *axes, const ms_multiplication *layer, const int8_t *in_1,
                      const int8_t *in_2, int8_t *out) {
    broadcast(axes, mul_row, layer, in_1, in_2, out);
}
