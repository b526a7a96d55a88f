/*
 * Arduino Nano 33 BLE Sense: nRF52840 at 64 MHz; the UART on the pins TX1 (P1.03) and RX0 (P1.10). It is the
 * one without DMA, which gives each byte when it comes. Registers: nRF52840 Product Specification, CLOCK,
 * NVMC, GPIO and UART.
 */
#include "port.h"

#include "core.h"
#include "wait.h"

enum { CORE_HZ = 64000000 };

enum { HFCLKSTART = 0x40000000, HFCLKSTAT = 0x4000040c, FROM_CRYSTAL = 1 << 0, RUNS = 1 << 16 };
enum { ICACHECNF = 0x4001e540, CACHE_ON = 1 };

enum { GPIO_1 = 0x50000300, OUTSET = 0x508, PIN_CNF = 0x700 };
enum { OUTPUT = 1 << 0, NO_INPUT = 1 << 1, PULL_UP = 3 << 2 };
enum { TX_PIN = 3, RX_PIN = 10, PORT_1 = 1 << 5 };

enum { UART = 0x40002000 };
enum { STARTRX = 0x000, STARTTX = 0x008, RXDRDY = 0x108, TXDRDY = 0x11c, ERROR_EVENT = 0x124 };
enum { INTENSET = 0x304, INTENCLR = 0x308, RXDRDY_INTERRUPT = 1 << 2, ERROR_INTERRUPT = 1 << 9 };
enum { ERRORSRC = 0x480, ENABLE = 0x500, ENABLED = 4, PSELTXD = 0x50c, PSELRXD = 0x514 };
enum { RXD = 0x518, TXD = 0x51c, BAUDRATE = 0x524, CONFIG = 0x56c };

/*
 * The values that the specification gives for BAUDRATE. What comes out is 16 MHz divided by a whole number:
 * 941,176 baud for 921,600, and 470,588 for 460,800, both 2.1 % too fast.
 */
#if PORT_BAUD == 9600
enum { BAUD = 0x00275000 };
#elif PORT_BAUD == 19200
enum { BAUD = 0x004ea000 };
#elif PORT_BAUD == 38400
enum { BAUD = 0x009d5000 };
#elif PORT_BAUD == 57600
enum { BAUD = 0x00ebf000 };
#elif PORT_BAUD == 115200
enum { BAUD = 0x01d7e000 };
#elif PORT_BAUD == 230400
enum { BAUD = 0x03afb000 };
#elif PORT_BAUD == 250000
enum { BAUD = 0x04000000 };
#elif PORT_BAUD == 460800
enum { BAUD = 0x075f7000 };
#elif PORT_BAUD == 921600
enum { BAUD = 0x0ebed000 };
#elif PORT_BAUD == 1000000
enum { BAUD = 0x10000000 };
#else
#error "the nRF52840's UART has no such baud rate: take 115200, 230400, 250000 or 1000000"
#endif

const char port_name[] = "nano-33-ble-sense";

void port_start(void) {
    REGISTER(ICACHECNF) = CACHE_ON;
    /* The core's clock is 64 MHz either way; without the crystal that of the UART is off by some per cent. */
    REGISTER(HFCLKSTART) = 1;
    (void)becomes(HFCLKSTAT, RUNS | FROM_CRYSTAL, RUNS | FROM_CRYSTAL);

    REGISTER(GPIO_1 + OUTSET) = 1u << TX_PIN;
    REGISTER(GPIO_1 + PIN_CNF + 4 * TX_PIN) = NO_INPUT | OUTPUT;
    REGISTER(GPIO_1 + PIN_CNF + 4 * RX_PIN) = PULL_UP;
    REGISTER(UART + ENABLE) = 0; /* a bootloader may have used it, its DMA and other interrupts */
    REGISTER(UART + INTENCLR) = 0xffffffffu;
    REGISTER(UART + CONFIG) = 0;
    REGISTER(UART + PSELTXD) = PORT_1 | TX_PIN;
    REGISTER(UART + PSELRXD) = PORT_1 | RX_PIN;
    REGISTER(UART + BAUDRATE) = BAUD;
    REGISTER(UART + RXDRDY) = 0;
    REGISTER(UART + ERROR_EVENT) = 0;
    REGISTER(UART + INTENSET) = RXDRDY_INTERRUPT | ERROR_INTERRUPT;
    REGISTER(UART + ENABLE) = ENABLED;
    REGISTER(UART + STARTTX) = 1;
    REGISTER(UART + STARTRX) = 1;
    cycles_start();
    enable_interrupt(PORT_INTERRUPT);
}

uint32_t port_clock_hz(void) { return CORE_HZ; }

/* Without sleep: in it the clock of SysTick stops, and all times would be too short. */
void port_wait(int (*ready)(void)) { (void)ready; }

/* The transmitter holds one byte, and says when it is out. */
void port_write(const void *bytes, size_t count) {
    const uint8_t *next = bytes;
    while (count-- > 0) {
        REGISTER(UART + TXDRDY) = 0;
        REGISTER(UART + TXD) = *next++;
        while (REGISTER(UART + TXDRDY) == 0) {
        }
    }
}

/* The event is cleared before the byte is read, which makes the next one of the six that are held move up. */
void port_interrupt(void) {
    if (REGISTER(UART + ERROR_EVENT) != 0) {
        REGISTER(UART + ERROR_EVENT) = 0;
        REGISTER(UART + ERRORSRC) = REGISTER(UART + ERRORSRC);
        receive_error();
    }
    if (REGISTER(UART + RXDRDY) != 0) {
        REGISTER(UART + RXDRDY) = 0;
        receive_byte((uint8_t)REGISTER(UART + RXD));
    }
    (void)REGISTER(UART + RXDRDY); /* the clearing is through before the interrupt ends, or it comes twice */
}
