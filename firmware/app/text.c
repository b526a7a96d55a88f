/* Numbers as text and back, in integer arithmetic. */
#include "text.h"

#include <string.h>

#include "division.h"
#include "port.h"

enum { MANTISSA_BITS = 23, EXPONENT_BIAS = 127 };

void text_send(const char *text) { port_write(text, strlen(text)); }

static void send_digits(uint64_t value, int least) {
    char digits[20];
    int first = (int)sizeof digits;
    do {
        digits[--first] = (char)('0' + divide(&value, 10));
    } while (value != 0 || (int)sizeof digits - first < least);
    port_write(digits + first, sizeof digits - (uint32_t)first);
}

void text_send_decimal(uint64_t value) { send_digits(value, 1); }

static char digit_of(uint32_t value) { return (char)(value < 10 ? '0' + value : 'a' - 10 + value); }

void text_send_hexadecimal(uint8_t byte) {
    const char two[2] = {digit_of(byte >> 4), digit_of(byte & 15u)};
    port_write(two, sizeof two);
}

/* value * 2^exponent, halves to even. */
static uint64_t scale_by_power(uint64_t value, int exponent) {
    uint32_t half = 0, less = 0; /* of the bits that fell off: the highest, and whether any other is set */
    for (; exponent < 0; exponent++) {
        less |= half;
        half = (uint32_t)value & 1u;
        value >>= 1;
    }
    for (; exponent > 0; exponent--) {
        value <<= 1;
    }
    return value + (half & (less | (uint32_t)value));
}

void text_send_scaled(float scale, int32_t steps) {
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    const uint32_t mantissa = (bits & 0x7fffffu) | 0x800000u;
    const int exponent = (int)(bits >> MANTISSA_BITS) - EXPONENT_BIAS - MANTISSA_BITS;
    const uint32_t size = (uint32_t)(steps < 0 ? -steps : steps);
    uint64_t thousandths = scale_by_power((uint64_t)mantissa * (size * 1000u), exponent);
    const uint32_t fraction = divide(&thousandths, 1000);
    text_send(steps < 0 ? "-" : "");
    text_send_decimal(thousandths);
    text_send(".");
    send_digits(fraction, 3);
}

int text_read_decimal(const char *word, uint32_t *value) {
    uint32_t read = 0, digits = 0;
    for (; *word >= '0' && *word <= '9'; word++, digits++) {
        read = read * 10u + (uint32_t)(*word - '0');
    }
    *value = read;
    return *word == '\0' && digits > 0 && digits < 10;
}

int text_read_digit(char digit) {
    if (digit >= '0' && digit <= '9') {
        return digit - '0';
    }
    const char lower = (char)(digit | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}
