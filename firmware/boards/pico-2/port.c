/*
 * Raspberry Pi Pico 2: RP2350 (Arm) at 150 MHz from a crystal of 12 MHz; UART0, a PL011, on GP0 and GP1.
 * Registers: RP2350 datasheet, Clocks, XOSC, PLL, Resets, GPIO and UART.
 */
#include "port.h"

#include "core.h"
#include "wait.h"

enum { CORE_HZ = 150000000, CRYSTAL_HZ = 12000000, RING_HZ = 11000000 };

enum { CLK_REF_CTRL = 0x40010030, CLK_REF_DIV = 0x40010034, CLK_REF_SELECTED = 0x40010038 };
enum { REF_FROM_RING = 0, REF_FROM_CRYSTAL = 2, UNDIVIDED = 1 << 16 };
enum { CLK_SYS_CTRL = 0x4001003c, CLK_SYS_SELECTED = 0x40010044, SYS_FROM_REF = 0, SYS_FROM_PLL = 1 };
enum { CLK_PERI_CTRL = 0x40010048, PERI_FROM_SYS = 0, PERI_ON = 1 << 11 };

enum { XOSC_CTRL = 0x40048000, XOSC_STATUS = 0x40048004, XOSC_STARTUP = 0x4004800c };
enum { XOSC_1_15_MHZ = 0xaa0, XOSC_ENABLE = 0xfab << 12, XOSC_MILLISECOND = (CRYSTAL_HZ / 1000 + 128) / 256 };
#define XOSC_STABLE 0x80000000u

enum { PLL_CS = 0x40050000, PLL_PWR = 0x40050004, PLL_FBDIV = 0x40050008, PLL_PRIM = 0x4005000c };
enum { PLL_OFF = 1 << 0, POST_DIVIDERS_OFF = 1 << 3, VCO_OFF = 1 << 5, POST_1 = 16, POST_2 = 12 };
#define PLL_LOCKED 0x80000000u

enum { RESETS = 0x40020000, RESETS_DONE = 0x40020008, SET_BITS = 0x2000, CLEAR_BITS = 0x3000 };
enum { RESET_PINS = 1 << 6 | 1 << 9, RESET_PLL_SYS = 1 << 14, RESET_UART0 = 1 << 26 };

enum { GPIO0_CTRL = 0x40028004, GPIO1_CTRL = 0x4002800c, FUNCTION_UART = 2 };
enum { GPIO0_PAD = 0x40038004, GPIO1_PAD = 0x40038008 };
enum { INPUT = 1 << 6, DRIVE_4_MA = 1 << 4, PULL_UP = 1 << 3, SCHMITT = 1 << 1 };

enum { UART = 0x40070000, DATA = 0x00, FLAGS = 0x18, IBRD = 0x24, FBRD = 0x28, LCR_H = 0x2c, CR = 0x30 };
enum { IFLS = 0x34, IMSC = 0x38, ICR = 0x44 };
enum { RECEIVE_EMPTY = 1 << 4, TRANSMIT_FULL = 1 << 5 };                 /* flags */
enum { EIGHT_BITS = 3 << 5, FIFOS_ON = 1 << 4 };                         /* line control */
enum { UART_ON = 1 << 0, TRANSMIT_ON = 1 << 8, RECEIVE_ON = 1 << 9 };    /* control */
enum { RECEIVED = 1 << 4, RECEIVE_TIMEOUT = 1 << 6, ERRORS = 0xf << 7 }; /* interrupts */
enum { FRAMING = 1 << 8, BREAK = 1 << 10, OVERRUN = 1 << 11 };           /* with the data */

/*
 * The smallest block that makes the boot ROM start an image: an executable, secure, for the Arm cores of an
 * RP2350 (datasheet, "Minimum Arm IMAGE_DEF"). Its vectors are those at the start of the flash.
 */
extern const uint32_t boot_block[5];
__attribute__((section(".boot_block"), used)) const uint32_t boot_block[5] = {
    0xffffded3u, /* a block begins */
    0x10210142u, /* image type, one word long */
    0x000001ffu, /* last item; one word came before it */
    0,           /* the next block is this one: there is no other */
    0xab123579u, /* the block ends */
};

const char port_name[] = "pico-2";

static uint32_t core_hz;

/*
 * Whether clk_ref is the crystal's, undivided. If not it is the ring oscillator's, divided as the boot ROM
 * has it: RING_HZ by name, 4.6 to 24 MHz in fact (RP2350 datasheet, section 8.3.1).
 */
static int start_crystal(void) {
    REGISTER(XOSC_STARTUP) = XOSC_MILLISECOND;
    REGISTER(XOSC_CTRL) = XOSC_ENABLE | XOSC_1_15_MHZ;
    if (!becomes(XOSC_STATUS, XOSC_STABLE, XOSC_STABLE)) return 0;
    REGISTER(CLK_REF_CTRL) = REF_FROM_CRYSTAL;
    if (!becomes(CLK_REF_SELECTED, 1 << REF_FROM_CRYSTAL, 1 << REF_FROM_CRYSTAL)) return 0;
    REGISTER(CLK_REF_DIV) = UNDIVIDED;
    return 1;
}

/* 12 MHz * 125 / 5 / 2; the VCO is at 1,500 MHz. */
static int start_pll(void) {
    REGISTER(RESETS + SET_BITS) = RESET_PLL_SYS;
    REGISTER(RESETS + CLEAR_BITS) = RESET_PLL_SYS;
    if (!becomes(RESETS_DONE, RESET_PLL_SYS, RESET_PLL_SYS)) return 0;
    REGISTER(PLL_CS) = 1; /* the crystal's clock as it is */
    REGISTER(PLL_FBDIV) = 125;
    REGISTER(PLL_PWR + CLEAR_BITS) = PLL_OFF | VCO_OFF;
    if (!becomes(PLL_CS, PLL_LOCKED, PLL_LOCKED)) return 0;
    REGISTER(PLL_PRIM) = 5 << POST_1 | 2 << POST_2;
    REGISTER(PLL_PWR + CLEAR_BITS) = POST_DIVIDERS_OFF;
    REGISTER(CLK_SYS_CTRL) = SYS_FROM_PLL;
    return becomes(CLK_SYS_SELECTED, 1 << SYS_FROM_PLL, 1 << SYS_FROM_PLL);
}

/*
 * clk_sys goes to clk_ref first: its other input, where the boot ROM of revision A3 has put the ring
 * oscillator, may stop while it is switched to the PLL.
 */
static void start_clock(void) {
    core_hz = RING_HZ;
    REGISTER(CLK_SYS_CTRL + CLEAR_BITS) = SYS_FROM_PLL;
    (void)becomes(CLK_SYS_SELECTED, 1 << SYS_FROM_REF, 1 << SYS_FROM_REF);
    REGISTER(CLK_SYS_CTRL) = SYS_FROM_REF;
    if (!start_crystal()) {
        REGISTER(CLK_REF_CTRL) = REF_FROM_RING;
    } else if (start_pll()) {
        core_hz = CORE_HZ;
    } else {
        REGISTER(CLK_SYS_CTRL) = SYS_FROM_REF;
        core_hz = CRYSTAL_HZ;
    }
    REGISTER(CLK_PERI_CTRL) = PERI_FROM_SYS;
    REGISTER(CLK_PERI_CTRL) = PERI_FROM_SYS | PERI_ON;
}

/* The divisor has a fraction of 6 bits, and may not be less than 1. */
static void start_uart(void) {
    const uint32_t divisor = (core_hz * 4 + PORT_BAUD / 2) / PORT_BAUD;
    REGISTER(UART + IBRD) = divisor < 64 ? 1 : divisor >> 6;
    REGISTER(UART + FBRD) = divisor < 64 ? 0 : divisor & 63;
    REGISTER(UART + LCR_H) = EIGHT_BITS | FIFOS_ON;
    REGISTER(UART + IFLS) = 0; /* interrupt at 4 bytes, or when fewer have waited for 32 bits' time */
    REGISTER(UART + IMSC) = RECEIVED | RECEIVE_TIMEOUT | ERRORS;
    REGISTER(UART + CR) = UART_ON | TRANSMIT_ON | RECEIVE_ON;
}

void port_start(void) {
    enum { USED = RESET_PINS | RESET_UART0 };
    start_clock();
    REGISTER(RESETS + SET_BITS) = RESET_UART0;
    REGISTER(RESETS + CLEAR_BITS) = USED;
    (void)becomes(RESETS_DONE, USED, USED);
    REGISTER(GPIO0_CTRL) = FUNCTION_UART;
    REGISTER(GPIO1_CTRL) = FUNCTION_UART;
    REGISTER(GPIO0_PAD) = INPUT | DRIVE_4_MA | PULL_UP | SCHMITT; /* not isolated, as after reset */
    REGISTER(GPIO1_PAD) = INPUT | DRIVE_4_MA | PULL_UP | SCHMITT;
    start_uart();
    cycles_start();
    enable_interrupt(PORT_INTERRUPT);
}

uint32_t port_clock_hz(void) { return core_hz; }

void port_write(const void *bytes, size_t count) {
    const uint8_t *next = bytes;
    while (count-- > 0) {
        while (REGISTER(UART + FLAGS) & TRANSMIT_FULL) {
        }
        REGISTER(UART + DATA) = *next++;
    }
}

/* An overrun comes with the first byte after those that were lost. */
void port_interrupt(void) {
    while (!(REGISTER(UART + FLAGS) & RECEIVE_EMPTY)) {
        const uint32_t data = REGISTER(UART + DATA);
        if (data & (FRAMING | BREAK | OVERRUN)) receive_error();
        if (!(data & (FRAMING | BREAK))) receive_byte((uint8_t)data);
    }
    REGISTER(UART + ICR) = RECEIVED | RECEIVE_TIMEOUT | ERRORS;
}
