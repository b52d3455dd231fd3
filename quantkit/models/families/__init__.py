"""What is known of each model architecture: tensor names, transforms, metadata, memory geometry."""
