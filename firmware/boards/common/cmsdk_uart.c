#include "cmsdk_uart.h"

#include "port.h"

enum { TRANSMIT_FULL = 1, RECEIVE_FULL = 2, RECEIVE_OVERRUN = 8 };             /* state */
enum { TRANSMIT_ENABLE = 1, RECEIVE_ENABLE = 2, RECEIVE_INTERRUPT_ENABLE = 8 }; /* control */
enum { RECEIVE_INTERRUPT = 2 };                                                 /* interrupt status, clear */
enum { SMALLEST_DIVISOR = 16 };

static volatile struct {
    uint32_t data, state, control, interrupt, divisor;
} *uart;

void cmsdk_uart_start(uintptr_t base, uint32_t clock_hz) {
    const uint32_t divisor = clock_hz / PORT_BAUD;
    uart = (void *)base;
    uart->divisor = divisor < SMALLEST_DIVISOR ? SMALLEST_DIVISOR : divisor;
    uart->control = TRANSMIT_ENABLE | RECEIVE_ENABLE | RECEIVE_INTERRUPT_ENABLE;
}

void cmsdk_uart_write(const uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        while (uart->state & TRANSMIT_FULL) {
        }
        uart->data = bytes[i];
    }
}

void cmsdk_uart_interrupt(void) {
    uart->interrupt = RECEIVE_INTERRUPT;
    if (uart->state & RECEIVE_OVERRUN) {
        uart->state = RECEIVE_OVERRUN;
        receive_error();
    }
    while (uart->state & RECEIVE_FULL) receive_byte((uint8_t)uart->data);
}
