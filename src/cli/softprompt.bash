# Bash completion for softprompt. Commands, flags and the words of a choice come from the program's own help.

_softprompt()
{
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} program=${COMP_WORDS[0]} command=${COMP_WORDS[1]} help
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "$("$program" help 2>/dev/null | sed -n 's/^  \([a-z]*\)  .*/\1/p') help --version" -- "$word")
        return
    fi
    if [[ $command == lab ]]; then # its experiments, and what some of these choose among, have a help of their own
        local -a path=(lab)
        while ((${#path[@]} < COMP_CWORD - 1)) && [[ ${COMP_WORDS[${#path[@]} + 1]} != -* ]]; do path+=("${COMP_WORDS[${#path[@]} + 1]}"); done
        help=$("$program" "${path[@]}" --help 2>/dev/null) || return
        if [[ $word != -* && $before != -* ]]; then
            mapfile -t COMPREPLY < <(compgen -W "$(sed -n 's/^  \([a-z]*\)  .*/\1/p' <<<"$help")" -- "$word")
            return
        fi
    else
        help=$("$program" help "$command" 2>/dev/null) || return
    fi
    if [[ $before == --* ]]; then
        local choices
        choices=$(sed -n "s/^ .*$before \([a-z0-9]*|[a-z0-9|]*\).*/\1/p" <<<"$help" | tr '|' ' ')
        [[ $choices ]] && mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word") && return
    fi
    [[ $word == -* ]] && mapfile -t COMPREPLY < <(compgen -W "$(sed -n 's/^ *\(-., \)\{0,1\}\(--[a-z-]*\).*/\2/p' <<<"$help")" -- "$word")
}

complete -o default -F _softprompt softprompt
