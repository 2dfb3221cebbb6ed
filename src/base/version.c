/* version.c: the version that the build was given, so that it is written in one place only: project() in CMakeLists.txt. */
#include "softprompt.h"

const char *sp_version(void)
{
    return SP_VERSION;
}
