/* The inner loops of convolutions and fully connected layers, one definition a kernel family. */
#ifndef MS_DOT_H
#define MS_DOT_H

#include "microstill.h"

/* Columns hold what one pixel, or each of MS_PIXELS, reads: groups of four bytes x0, x1, x2, x3, each as two
 * pairs of int16, the `odd` (x1, x3) and the `even`, made of x0 and x2. The odd pairs of all pixels come first
 * in a group, then their even pairs.
 *
 * Streams hold the weights of a group as the bytes w1 + 128, w0, w3 + 128, w2, and biases that make up for
 * even inputs less 128. With even pairs of x0 - 128 - 256 x1, the DSP family needs no weight but w0 and w2 on
 * their own: as an int16, two bytes are 256 w0 + w1 + 128, and
 *     x1 (256 w0 + w1 + 128) + (x0 - 128 - 256 x1) w0 = x1 w1 + (x0 - 128) w0 + 128 x1.
 * The last term is the same for all output channels; a pixel's `correction` is the sum of all -128 x1. The
 * portable family has even pairs of x0 - 128. */
enum { MS_GROUP = 4, MS_PIXELS = 3 };

/* Elements of a group in columns of so many pixels, and how far the even pairs lie behind the odd. */
#define MS_COLUMN_STEP(pixels) ((pixels) * MS_GROUP)
#define MS_COLUMN_EVEN(pixels) ((pixels) * MS_GROUP / 2)

/* Widens `groups` > 0 times four bytes to the column of a pixel alone; returns its correction. */
int32_t ms_widen_alone(const int8_t *bytes, uint32_t groups, int16_t *column);

/* The same to a column among those of MS_PIXELS; `column` is where its first odd pair goes. */
int32_t ms_widen_among(const int8_t *bytes, uint32_t groups, int16_t *column);

/* The same for MS_PIXELS pixels whose bytes lie `distance` apart; adds to their corrections. */
void ms_widen_all(const int8_t *bytes, uint32_t groups, int16_t *columns, uint32_t distance,
                  int32_t corrections[MS_PIXELS]);

/* Copies `length` > 0 bytes of each of `rows` > 0 rows, one behind the other. */
void ms_join(const int8_t *row, uint32_t length, uint32_t rows, uint32_t row_bytes, int8_t *bytes);

/* All output channels of MS_PIXELS pixels, dense. */
void ms_dot_3(const ms_products *products, const int16_t *columns, const int32_t corrections[MS_PIXELS],
              int8_t *out);

/* The same for one pixel, whose column is alone. */
void ms_dot_1(const ms_products *products, const int16_t *column, int32_t correction, int8_t *out);

/* The output channels from `first` of one pixel, whose column is one of so many, for any scale, written plainly. */
void ms_dot_exact(const ms_products *products, const int16_t *column, uint32_t pixels, int32_t correction,
                  uint32_t first, int8_t *out);

#endif
