/* Keeps rare code out of the functions that it is called from: these need fewer registers and bytes. */
#ifndef MS_APART_H
#define MS_APART_H

#if defined(__GNUC__)
#define MS_APART __attribute__((noinline))
#else
#define MS_APART
#endif

#endif
