/* Arm MPS3 with AN547: UART0 by its secure alias; core at 32 MHz, peripherals at 25. */
#include "port.h"

#include "cmsdk_uart.h"
#include "core.h"

enum { CORE_HZ = 32000000, UART_HZ = 25000000 };

const char port_name[] = "mps3-an547";

void port_start(void) {
    cmsdk_uart_start(0x59303000u, UART_HZ);
    cycles_start();
    enable_interrupt(PORT_INTERRUPT);
}

uint32_t port_clock_hz(void) { return CORE_HZ; }

void port_write(const void *bytes, size_t count) { cmsdk_uart_write(bytes, count); }

void port_interrupt(void) { cmsdk_uart_interrupt(); }
