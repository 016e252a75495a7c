/* What the linked library adds to the double: its driver's version, and which image is which. The build of the
 * library writes images.h: one string. */
#include "images.h"

extern void cuda_double_setup(unsigned driver, unsigned toolkit, const char* images);

__attribute__((constructor)) static void setup(void) { cuda_double_setup(DRIVER, TOOLKIT, kImages); }
