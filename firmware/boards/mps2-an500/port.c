/* Arm MPS2 with AN500: UART0, all at 25 MHz. */
#include "port.h"

#include "cmsdk_uart.h"
#include "core.h"

enum { CORE_HZ = 25000000, UART_HZ = 25000000 };

const char port_name[] = "mps2-an500";

void port_start(void) {
    cmsdk_uart_start(0x40004000u, UART_HZ);
    cycles_start();
    enable_interrupt(PORT_INTERRUPT);
}

uint32_t port_clock_hz(void) { return CORE_HZ; }

void port_write(const void *bytes, size_t count) { cmsdk_uart_write(bytes, count); }

void port_interrupt(void) { cmsdk_uart_interrupt(); }
