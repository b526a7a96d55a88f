#include "wait.h"

#include "core.h"

int becomes(uintptr_t address, uint32_t mask, uint32_t value) {
    enum { ROUNDS = 1 << 17 };
    for (int rounds = ROUNDS; rounds > 0; rounds--) {
        if ((REGISTER(address) & mask) == value) return 1;
    }
    return 0;
}
