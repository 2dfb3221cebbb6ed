# Bash completion for softprompt. Commands, flags and the words of a choice come from the program's own help.

_softprompt()
{
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} program=${COMP_WORDS[0]} command=${COMP_WORDS[1]} help
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "$("$program" help 2>/dev/null | sed -n 's/^  \([a-z]*\)  .*/\1/p') help --version" -- "$word")
        return
    fi
    help=$("$program" help "$command" 2>/dev/null) || return
    if [[ $before == --* ]]; then
        local choices
        choices=$(sed -n "s/^ .*$before \([a-z0-9]*|[a-z0-9|]*\).*/\1/p" <<<"$help" | tr '|' ' ')
        [[ $choices ]] && mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word") && return
    fi
    [[ $word == -* ]] && mapfile -t COMPREPLY < <(compgen -W "$(sed -n 's/^ *\(-., \)\{0,1\}\(--[a-z-]*\).*/\2/p' <<<"$help")" -- "$word")
}

complete -o default -F _softprompt softprompt
