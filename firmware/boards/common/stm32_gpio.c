#include "stm32_gpio.h"

/* The mode alone is not the same in all families after reset: input, or analog. */
void stm32_alternate(uintptr_t port, unsigned pin, uint32_t function) {
    enum { MODE = 0, PULL = 3, FUNCTION = 8, INPUT_OR_ANALOG = 3, ALTERNATE = 2, PULL_UP = 1 };
    volatile uint32_t *const registers = (void *)port;
    registers[FUNCTION + pin / 8] |= function << pin % 8 * 4;
    registers[PULL] |= (uint32_t)PULL_UP << pin * 2;
    registers[MODE] &= ~((uint32_t)INPUT_OR_ANALOG << pin * 2);
    registers[MODE] |= (uint32_t)ALTERNATE << pin * 2;
}
