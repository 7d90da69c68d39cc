# Completion for all of sd-tools, in bash (and zsh after `autoload bashcompinit && bashcompinit`): the options are asked
# from the program itself, so that they are always those it has.

_sd_tools() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} help choices
    help=$("${COMP_WORDS[0]}" --help 2> /dev/null) || return
    choices=$(sed -n "s/^ *\(-., \)\{0,1\}$before \([a-z0-9_|]*|[a-z0-9_|]*\).*/\2/p" <<< "$help" | tr '|' '\n')
    if [[ $before == --* && -n $choices ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word")
    elif [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(grep -o -- '--[a-z0-9-]*' <<< "$help" | sort -u)" -- "$word")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    fi
}
complete -o filenames -F _sd_tools sd-crop sd-caption sd-encode-latents sd-train-ti sd-train-lora sd-merge sd-sample
