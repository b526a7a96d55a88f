/*
 * The model as the application sees it: one int8 input, one int8 output. inference.c implements it with the
 * generated engine; another file with the same symbols can do so with another runtime.
 */
#ifndef MICROSTILL_INFERENCE_H
#define MICROSTILL_INFERENCE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    uint32_t input_bytes, output_bytes;
    uint32_t buffer_bytes; /* memory that the model computes in */
    float output_scale;    /* real = scale * (quantised - zero point) */
    int32_t output_zero_point;
} inference_sizes;

/* Valid after inference_start(), and the same ever after. */
const inference_sizes *inference_model(void);

/*
 * The input tensor of the next inference, input_bytes of it. It belongs to receiver.c, which says who may
 * touch it when; it is defined beside the model because its size is the model's.
 */
extern int8_t inference_image[];

/*
 * Prepares the model and runs the self-test, whose input is stated in export/engine/self_test.py and leaves
 * its trace in inference_image. Returns whether the output was the golden one. Called once, before all else
 * of this header and before any byte is received into inference_image.
 */
int inference_start(void);

/* Copies inference_image to the model's input, which inference_run() overwrites. */
void inference_load(void);

/* Computes the output. */
void inference_run(void);

/* output_bytes of the last inference_run(), there until the next inference_load(). */
const int8_t *inference_output(void);

#ifdef __cplusplus
}
#endif

#endif
