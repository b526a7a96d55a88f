#include "port.h"
#include "stm32_usart.h"

/* status */
enum { FRAMING = 1 << 1, NOISE = 1 << 2, OVERRUN = 1 << 3, RECEIVED = 1 << 5, TRANSMIT_EMPTY = 1 << 7 };
/* control */
enum { RECEIVE = 1 << 2, TRANSMIT = 1 << 3, RECEIVE_INTERRUPT = 1 << 5, ENABLE = 1 << 13 };

static volatile struct {
    uint32_t status, data, divisor, control;
} *usart;

void usart_start(uintptr_t base, uint32_t divisor) {
    usart = (void *)base;
    usart->divisor = divisor;
    usart->control = ENABLE | TRANSMIT | RECEIVE | RECEIVE_INTERRUPT;
}

void port_write(const void *bytes, size_t count) {
    const uint8_t *next = bytes;
    while (count-- > 0) {
        while (!(usart->status & TRANSMIT_EMPTY)) {
        }
        usart->data = *next++;
    }
}

/* Errors are cleared by this order of reads. An overrun lost the byte after the one in `data`. */
void port_interrupt(void) {
    const uint32_t status = usart->status;
    const uint8_t byte = (uint8_t)usart->data;
    if (status & (FRAMING | NOISE)) {
        receive_error();
    } else if (status & RECEIVED) {
        receive_byte(byte);
    }
    if (status & OVERRUN) receive_error();
}
