"""What networks that predict the spots of a slide share: parts of slides, training, choice of epochs."""
