/* Words and numbers to the serial port, and numbers from words. */
#ifndef MICROSTILL_TEXT_H
#define MICROSTILL_TEXT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

void text_send(const char *text);
void text_send_decimal(uint64_t value);
void text_send_hexadecimal(uint8_t byte);

/*
 * scale * steps with three decimals, as printf("%.3f") prints it: exact, halves to even. scale: positive, below
 * 2^44. steps: -255 to 255.
 */
void text_send_scaled(float scale, int32_t steps);

/* Whether the whole word is a decimal number, of at most nine digits. */
int text_read_decimal(const char *word, uint32_t *value);

/* Value of a hexadecimal digit, or -1. */
int text_read_digit(char digit);

#ifdef __cplusplus
}
#endif

#endif
