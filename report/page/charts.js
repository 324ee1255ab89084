// Charts change with nothing but the theme.

export default function (args) {
  follow_theme(args)
}
