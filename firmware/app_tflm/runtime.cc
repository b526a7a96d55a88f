/*
 * What compiled C++ refers to and never calls here: there are no objects on a heap, and no call of a pure
 * virtual function in a program that is right. libstdc++'s own would bring in exceptions and output.
 */
#include <stddef.h>

extern "C" void __cxa_pure_virtual() { __builtin_trap(); }

void operator delete(void *) noexcept {}
#if defined(__cpp_sized_deallocation)
void operator delete(void *, size_t) noexcept {}
#endif
