/* outside.c: an outside program. It must compile against the installed header, link the installed library, and run. */
#include <softprompt.h>
#include <stdio.h>

int main(void)
{
    puts(sp_version());
    return 0;
}
