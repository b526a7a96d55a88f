/* int8 inference kernels, bit-exact with TensorFlow Lite Micro's reference kernels.
 *
 * Tensors are dense NHWC int8, batch 1. No kernel allocates, keeps state or reads outside its arguments.
 * Two families have these symbols: portable C99, and one for cores with the DSP extension (Cortex-M4, M7,
 * M33); the family is chosen at build time by the compiler's flags (`__ARM_FEATURE_DSP`).
 *
 * `model.c` holds what kernels read, laid out for them at compile time: input zero points are folded into
 * biases, so borders hold the input's zero point. */
#ifndef MICROSTILL_H
#define MICROSTILL_H

#include <stdint.h>

/* Version of layouts and calls; a generated model refuses to compile against another one. */
#define MICROSTILL_KERNELS 1

/* Where a window lies. Sizes in elements; dilation 1 is none. */
typedef struct {
    uint16_t in_height, in_width, channels;
    uint16_t out_height, out_width;
    uint16_t kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x;
    uint16_t pad_top, pad_left;
    int8_t fill; /* what borders hold: the input's zero point */
} ms_window;

/* Sums of products.
 *
 * stream: for each pair of output channels (a, b; the last b of an odd number is all zeros) in 32-bit words:
 *     bias a, bias b, then `groups` times four weights of a and four of b, multiplier a, multiplier b,
 *     shift a | shift b << 16.
 * Four weights w0..w3 are the bytes w1 + 128, w0, w3 + 128, w2, and a bias holds 128 times the sum of all w0 and
 * w2 besides: dot.h says why.
 * groups: products of an output channel, divided by four and rounded up; missing weights are zero.
 * A shift is coded: the bits of a division less one, or 0x80 + bits to the left where nothing is divided.
 * large: whether a sum, shifted to the left, can reach 2^30. */
typedef struct {
    const int32_t *stream;
    uint16_t groups, out_channels;
    int8_t out_zero_point;
    uint8_t large;
} ms_products;

/* Bytes of scratch, 4-byte aligned: columns of three pixels, and one column as it lies in the input. */
#define MS_CONV_2D_SCRATCH_BYTES(groups) ((groups) * 28u)
#define MS_FULLY_CONNECTED_SCRATCH_BYTES(groups) ((groups) * 8u)

/* Output pixels are computed three by three in raster order, or from the last to the first, each block after
 * all that it reads has been copied: the output may overlap input that later blocks do not read. */
void ms_conv_2d(const ms_window *window, const ms_products *products, int backwards, const int8_t *in,
                int8_t *out, void *scratch);

/* in: `rows` vectors of `depth` elements. */
void ms_fully_connected(const ms_products *products, uint32_t rows, uint32_t depth, const int8_t *in,
                        int8_t *out, void *scratch);

/* Depthwise convolution, `depth_multiplier` output channels for each of the input's.
 *
 * weights: (out channels, KH, KW). bias, multiplier, shift: of each output channel. Both as in ms_products.
 * MS_LANES channels, or one where that does not divide them, are computed at a time, `band` output rows at
 * once, through copies of the rows that these read: with a depth multiplier of 1 and no more output than
 * input rows and columns the output may lie exactly on the input. */
typedef struct {
    const int8_t *weights;
    const int32_t *bias, *multiplier;
    const uint8_t *shift;
    uint8_t large;
    uint16_t depth_multiplier, band;
    int8_t out_zero_point;
} ms_depthwise;

enum { MS_LANES = 4 };

/* Elements of a copied row: two outputs are computed together. */
#define MS_DEPTHWISE_ROW(out_width, stride_x, kernel_width, dilation_x)                                        \
    (((((out_width) + 1u) / 2u * 2u - 1u) * (stride_x) + ((kernel_width) - 1u) * (dilation_x) + 2u) & ~1u)

/* scratch: for each lane (band - 1) * stride_y + (kernel_height - 1) * dilation_y + 1 rows. */
void ms_depthwise_conv_2d(const ms_window *window, const ms_depthwise *layer, const int8_t *in, int8_t *out,
                          int16_t *scratch);

/* Clamps in place; after kernels whose fused activation is narrower than int8. */
void ms_clamp(int8_t *values, uint32_t count, int8_t low, int8_t high);

/* out = table[in + 128]: every operator of one int8 input and one output without neighbours. May be in place. */
void ms_lookup(const int8_t *table, const int8_t *in, int8_t *out, uint32_t count);

/* Elementwise sum of tensors whose scales are in_1's, the larger, and in_2's.
 *
 * On a grid 2^20 times as fine, in_1 is halved and in_2 multiplied by multiplier_2 / 2^(31 + shift_2), where
 * shift_2 is 0 for equal scales only; their sum by multiplier_out / 2^31, shifted as shift_out says, coded as in
 * ms_products. */
typedef struct {
    int32_t multiplier_2, multiplier_out;
    int8_t zero_point_1, zero_point_2, zero_point_out;
    uint8_t shift_2, shift_out;
} ms_addition;

/* May be in place over either input. */
void ms_add(const ms_addition *layer, const int8_t *in_1, const int8_t *in_2, int8_t *out, uint32_t count);

/* Elementwise product. shift: as in ms_products. large: whether a product, shifted to the left, can reach 2^30. */
typedef struct {
    int32_t multiplier;
    int8_t zero_point_1, zero_point_2, zero_point_out;
    uint8_t shift, large;
} ms_multiplication;

/* May be in place over either input. */
void ms_mul(const ms_multiplication *layer, const int8_t *in_1, const int8_t *in_2, int8_t *out, uint32_t count);

enum { MS_AXES = 4 };

/* How two tensors broadcast: rows of `row` elements, along which one of them may repeat its first, within axes,
 * the innermost first, along which both advance by their steps, in elements; unused axes have size 1, step 0. */
typedef struct {
    uint32_t row;
    uint32_t sizes[MS_AXES], steps_1[MS_AXES], steps_2[MS_AXES];
    uint8_t repeats_1, repeats_2;
} ms_broadcast;

/* May be in place over an input that does not repeat. */
void ms_add_broadcast(const ms_broadcast *axes, const ms_addition *layer, const int8_t *in_1,
                      const int8_t *in_2, int8_t *out);
void ms_mul_broadcast(const ms_broadcast *axes, const ms_multiplication *layer, const int8_t *in_1,
                      const int8_t *in_2, int8_t *out);

/* Channel by channel, pixel by pixel in raster order: the output may overlap input that lies before the windows
 * of later pixels. */
void ms_average_pool_2d(const ms_window *window, int8_t low, int8_t high, const int8_t *in, int8_t *out);
void ms_max_pool_2d(const ms_window *window, int8_t low, int8_t high, const int8_t *in, int8_t *out);

/* Softmax of `rows` vectors of `depth` elements. table: Q0.31 exponentials of the 256 differences from the
 * largest element. May be in place. */
void ms_softmax(const int32_t *table, uint32_t rows, uint32_t depth, const int8_t *in, int8_t *out);

/* Mean over axes 1 and 3 of five, which are kept[0], reduced[0], kept[1], reduced[1], kept[2] elements long.
 *
 * offset: what is added to a sum: -input zero point for each element. multiplier / 2^31, shifted to the left by
 * shift, scales it. */
typedef struct {
    uint32_t kept[3], reduced[2];
    int32_t offset, multiplier;
    int8_t shift, out_zero_point;
} ms_averaging;

/* The output may start where the input does, or before. */
void ms_mean(const ms_averaging *layer, const int8_t *in, int8_t *out);

/* Rows of `bytes` together in the input become parts of rows of `step` bytes, from their byte `first`. */
void ms_copy_rows(uint32_t rows, uint32_t bytes, uint32_t first, uint32_t step, const int8_t *in, int8_t *out);

/* Borders of `fill` around rows of pixels of bytes; those before and after each of the three, in bytes. */
typedef struct {
    uint32_t rows, pixels, bytes;
    uint32_t top, bottom, left, right, front, back;
    int8_t fill;
} ms_padding;

/* From the first byte to the last: the output may overlap input that has been read. */
void ms_pad(const ms_padding *padding, const int8_t *in, int8_t *out);

/* Runs of `bytes` from the byte `start`, along three axes, the innermost first, that advance by their steps. */
typedef struct {
    uint32_t start, bytes;
    uint32_t sizes[3], steps[3];
} ms_slice;

/* The output may start where the input does, or before. */
void ms_strided_slice(const ms_slice *slice, const int8_t *in, int8_t *out);

/* rows, columns: of the input, for each row and column of the output. */
typedef struct {
    const uint16_t *rows, *columns;
    uint16_t out_height, out_width, in_width, channels;
} ms_resize;

/* Pixel by pixel in raster order: the output may overlap input that has been read for the last time. */
void ms_resize_nearest_neighbor(const ms_resize *resize, const int8_t *in, int8_t *out);

#endif
